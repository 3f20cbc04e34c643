"""How many posterior draws an item needs: it gets no more once further ones would hardly change its answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Self

import numpy as np
import torch
from scipy.special import digamma, polygamma, stdtr
from torch import Tensor, nn

from bayeslora.options.ranges import Range, Size, check_options
from bayeslora.prediction.predictive import Predictive
from bayeslora.prediction.uneven import UnevenPredictive

_TINY = 1e-30
_Within = Annotated[float, Range(0, 1, above=True, below=True)]


@dataclass(frozen=True)
class Adaptive:
    """When an item has draws enough.

    Args:
        error: Share of the items, at most, whose answer may be another one than that of all draws.
        tolerance: The answer is also the probability of the predicted choice, to within this much.
        threshold: The answer is also whether that probability is at least this much, as where an action is taken.
        fewest: Draws of an item at least; of one draw the mutual information is 0.

    Raises:
        ValueError: A number is not in (0, 1), or `fewest` is no whole number from 1 on.
    """

    error: _Within = 0.01
    tolerance: _Within | None = None
    threshold: _Within | None = None
    fewest: Size = 1

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class VariancePrior:
    """Scaled inverse chi-squared prior of the variances of items (Smyth 2004, doi 10.2202/1544-6115.1027).

    Args:
        degrees: d0, for how many observations it counts; infinite where all items have one variance.
        variance: s0^2.
    """

    degrees: float
    variance: float

    @classmethod
    def fit(cls, variances: Tensor, degrees: int) -> Self:
        """The prior of sample variances [items] with so many degrees of freedom each (section 6.2, in closed form)."""
        positive = variances[variances > _TINY].double()
        if len(positive) < 2:
            return cls(math.inf, float(positive.mean()) if len(positive) else 0.0)
        logs = positive.log().numpy() - digamma(degrees / 2) + math.log(degrees / 2)
        excess = float(logs.var(ddof=1) - polygamma(1, degrees / 2))
        if excess <= 0:
            return cls(math.inf, math.exp(logs.mean()))
        half = _inverse_trigamma(excess)
        return cls(2 * half, float(np.exp(logs.mean() + digamma(half) - np.log(half))))

    def moderated(self, variances: Tensor, degrees: int) -> Tensor:
        """Posterior of sample variances: their mean with s0^2, each weighted by its degrees of freedom."""
        if math.isinf(self.degrees):
            return torch.full_like(variances, self.variance)
        return (self.degrees * self.variance + degrees * variances) / (self.degrees + degrees)


def _inverse_trigamma(value: float) -> float:
    """Newton's method on 1 / trigamma, which is convex and nearly linear."""
    found = 0.5 + 1 / value
    for _ in range(50):
        slope = float(polygamma(1, found))
        step = slope * (1 - slope / value) / float(polygamma(2, found))
        found += step
        if -step / found < 1e-8:
            break
    return found


@dataclass(frozen=True)
class Settling:
    """A sequential test by stochastic curtailment: would the rest of `most` draws change the answer?

    The difference D of the probabilities of two choices has mean D_s after s draws. Its mean over all S draws is, given
    these, Student's t around D_s with scale sigma sqrt((S - s) / (S s)), and of another sign with a probability that
    is summed over the rivals of the top choice: the item's doubt. An item is settled where it is at most `limit`, the
    highest one at which of the items with all their draws at most `error` would have another answer, by their mean
    doubt and counted.

    sigma^2 is the moderated variance of D in units of the delta method: D moves by 2 p q / (p + q) times the change
    of log(p / q), so that sure and unsure items share one prior. The factor is taken where log(p / q) is nearer to 0
    by one standard error, as few draws may all lie where D hardly moves. For the probability itself the rival is all
    else.

    Args:
        adaptive: What is asked for.
        most: S, the draws of an item that never settles; its answer is the reference.
        rival: Prior for the top choice against another one.
        rest: Prior for the top choice against all others.
        limit: Doubt with which an item may be left.
    """

    adaptive: Adaptive
    most: int
    rival: VariancePrior
    rest: VariancePrior
    limit: float

    @classmethod
    def fit(cls, adaptive: Adaptive, samples: Tensor) -> Self:
        """From log-probabilities [S, items, choices] of items with all their draws, two or more."""
        probabilities = samples.double().exp()
        most, _, choices = probabilities.shape
        mean = probabilities.mean(0)
        order = mean.argsort(dim=-1, descending=True, stable=True)
        ranked = probabilities.gather(-1, order.expand(most, -1, -1))
        first, second = ranked[..., 0], ranked[..., min(1, choices - 1)]
        rival, rest = (VariancePrior.fit(_in_slopes(first, other).var(0), most - 1) for other in (second, 1 - first))
        settling = cls(adaptive, most, rival, rest, 0.0)
        doubts, changes = [], []
        for look in settling.looks[:-1]:
            doubts.append(settling.doubt(samples[:look]))
            changes.append(settling.changed(probabilities[:look].mean(0), mean))
        if not doubts:  # `fewest` are all draws, or more: every item has all of them.
            return settling
        return replace(settling, limit=_limit(torch.stack(doubts), torch.stack(changes), adaptive.error))

    @property
    def looks(self) -> list[int]:
        """After how many draws an item is looked at: the fewest, twice as many and so on, and all.

        >>> Settling(Adaptive(), 10, VariancePrior(5.0, 0.2), VariancePrior(5.0, 0.2), 0.01).looks
        [1, 2, 4, 8, 10]
        """
        doubled = (self.adaptive.fewest * 2**k for k in range(self.most.bit_length()))
        return [*(look for look in doubled if look < self.most), self.most]

    def settled(self, samples: Tensor) -> Tensor:
        """Whether items [batch] have enough draws, from the log-probabilities [samples, batch, choices] of each."""
        return self.doubt(samples) <= self.limit

    def doubt(self, samples: Tensor) -> Tensor:
        """Probability [batch] that all draws give another answer than these; above 1 where the sum of bounds is."""
        probabilities = samples.double().exp()
        mean = probabilities.mean(0)
        top = mean.argmax(-1, keepdim=True)
        chosen = probabilities.gather(-1, top.expand(len(samples), -1, -1))
        differences = (chosen - probabilities).mean(0)
        changed = self._below(chosen, probabilities, self.rival, differences).scatter(-1, top, 0).sum(-1)
        chosen, share = chosen.squeeze(-1), chosen.mean(0).squeeze(-1)
        if self.adaptive.tolerance is not None:
            far = torch.full_like(share, 2 * self.adaptive.tolerance)
            changed = changed + 2 * self._below(chosen, 1 - chosen, self.rest, far)
        if self.adaptive.threshold is not None:
            away = 2 * (share - self.adaptive.threshold).abs()
            changed = changed + self._below(chosen, 1 - chosen, self.rest, away)
        return changed

    def changed(self, found: Tensor, full: Tensor) -> Tensor:
        """Whether probabilities [batch, choices] have another answer than those of all draws [batch]."""
        top = found.argmax(-1, keepdim=True)
        changed = top.squeeze(-1) != full.argmax(-1)
        share, reference = (each.gather(-1, top).squeeze(-1) for each in (found, full))
        if self.adaptive.tolerance is not None:
            changed = changed | ((share - reference).abs() > self.adaptive.tolerance)
        if self.adaptive.threshold is not None:
            changed = changed | ((share >= self.adaptive.threshold) != (reference >= self.adaptive.threshold))
        return changed

    def _below(self, first: Tensor, second: Tensor, prior: VariancePrior, distance: Tensor) -> Tensor:
        """Probability that the mean of first - second over all draws is lower by `distance` than over these."""
        drawn = len(first)
        odds = (first.clamp_min(_TINY) / second.clamp_min(_TINY)).log()
        slope = _slope(first.mean(0), second.mean(0))
        variance = prior.moderated(_variance(first - second) / slope.square().clamp_min(_TINY), drawn - 1)
        step = (prior.moderated(_variance(odds), drawn - 1) / drawn).sqrt()
        variance = variance * _nearer_slope(first.mean(0), second.mean(0), step).square()
        scale = (variance * (self.most - drawn) / (self.most * drawn)).sqrt()
        # Equal and without variance: nothing is known of which is the higher one.
        ratio = torch.nan_to_num(-distance / scale, nan=0.0)
        degrees = min(prior.degrees + drawn - 1, 1e9)
        return torch.from_numpy(np.asarray(stdtr(degrees, ratio.numpy())))


def _limit(doubts: Tensor, changes: Tensor, error: float) -> float:
    """The highest limit at which, and below which, items are left with `error`: by their doubt and as it turned out.

    One more item is counted, whose answer changes, as in conformal risk control (arXiv 2208.02814); without any change
    among items that are too few for that, one with the doubt of the limit.

    Args:
        doubts: [looks, items].
        changes: Whether the answer is another one than that of all draws [looks, items].
        error: Share of the items.
    """
    limit, allowed = 0.0, error * (doubts.shape[1] + 1)
    for candidate in doubts.unique().tolist():
        ends = doubts <= candidate
        first = ends.int().argmax(0, keepdim=True)
        left, changed = (float((ends.any(0) * rows.gather(0, first)).sum()) for rows in (doubts, changes))
        if left + candidate > allowed or (changed and changed + 1 > allowed):
            break
        limit = candidate
    return limit


def _slope(first: Tensor, second: Tensor) -> Tensor:
    """Of p - q by log(p / q), where p + q stays: 2 p q / (p + q)."""
    return 2 * first * second / (first + second).clamp_min(_TINY)


def _variance(draws: Tensor) -> Tensor:
    """Sample variance over the first dimension; 0 of one draw, which counts with no degrees of freedom."""
    return draws.var(0) if len(draws) > 1 else torch.zeros_like(draws[0])


def _nearer_slope(first: Tensor, second: Tensor, step: Tensor) -> Tensor:
    """The slope where log(p / q) is nearer to 0 by `step`: few draws may all lie where the difference hardly moves."""
    odds = (first.clamp_min(_TINY) / second.clamp_min(_TINY)).log().abs()
    return (first + second) / 2 * (1 - torch.tanh((odds - step).clamp_min(0) / 2).square())


def _in_slopes(first: Tensor, second: Tensor) -> Tensor:
    slope = _slope(first.mean(0), second.mean(0))
    return torch.where(slope > _TINY, (first - second) / slope.clamp_min(_TINY), 0)


def draw_until_settled(
    draw: Callable[[Sequence[int], int, int], Predictive], settling: Settling, items: int, temperature: float = 1.0
) -> UnevenPredictive:
    """Predictions of so many items, each with the draws that it needs.

    Args:
        draw: Predictive of the items of these indices, on the CPU, with draws from the given one on, so many. An item's
            draw of a number is the same whatever else is asked for.
        settling: When an item has enough.
        items: How many there are.
        temperature: Divides the log-probabilities before they are looked at.
    """
    open_items, drawn = torch.arange(items), 0
    rounds: list[tuple[Tensor, Tensor]] = []
    for look in settling.looks:
        if len(open_items) == 0:
            break
        found = draw(open_items.tolist(), drawn, look - drawn)
        samples = found.tempered(temperature).samples.float()
        # The first round has all items, and so the most choices.
        width = rounds[0][1].shape[-1] if rounds else samples.shape[-1]
        rounds.append((open_items, nn.functional.pad(samples, (0, width - samples.shape[-1]), value=-torch.inf)))
        drawn = look
        if look < settling.most:
            done = settling.settled(torch.cat([_of(part, open_items, items) for part in rounds]))
            open_items = open_items[~done]
    return UnevenPredictive.of_rounds(rounds, items)


def _of(part: tuple[Tensor, Tensor], wanted: Tensor, items: int) -> Tensor:
    """The draws of the `wanted` items, which took part in a round, of its items' numbers and samples."""
    numbers, samples = part
    place = torch.empty(items, dtype=torch.long)
    place[numbers] = torch.arange(len(numbers))
    return samples[:, place[wanted]]

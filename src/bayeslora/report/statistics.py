"""Means over seeds, and which rows of a table cannot be told apart from the best.

The rows are compared by a paired bootstrap: items are drawn with replacement, the same ones for all rows, and seeds are
drawn with replacement too, the same ones for all rows that have the same seeds. A resample is an array of counts, how
often each item was drawn, and every metric is computed from counts for all resamples at once; counts of one are the
sample itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy
import torch

from bayeslora.metrics import SMALLEST_PROBABILITY
from bayeslora.metrics.inputs import checked, share_of, top_choice

__all__ = [
    "DETECTION",
    "METRICS",
    "Mark",
    "Metric",
    "Resampling",
    "Score",
    "compare",
    "detection_auroc",
    "metric_values",
]

Mark = Literal["best", "tied", ""]

_BINS = 15
_COVERAGE = 0.8
_INTERVAL = (0.025, 0.975)
_SAME = 1e-9
"""Means that differ by less are equal up to rounding."""


@dataclass(frozen=True)
class Metric:
    """A column of a table.

    Attributes:
        name: Its key in `bayeslora.metrics.summary`.
        title: Its head, with its unit.
        higher_is_better: Its direction.
    """

    name: str
    title: str
    higher_is_better: bool

    @property
    def head(self) -> str:
        """The title with an arrow in the direction of better."""
        return f"{self.title}\N{NO-BREAK SPACE}{'↑' if self.higher_is_better else '↓'}"


METRICS = (
    Metric("accuracy", "accuracy", True),
    Metric("nll", "NLL (nats)", False),
    Metric("ece", "ECE", False),
    Metric("adaptive_ece", "adaptive ECE", False),
    Metric("mce", "MCE", False),
    Metric("brier", "Brier", False),
    Metric("auroc", "AUROC", True),
    Metric("aurc", "AURC", False),
    Metric("accuracy_at_80", "accuracy at 80\N{NO-BREAK SPACE}% coverage", True),
)
"""Scores of labelled items, as in `bayeslora.metrics.summary`."""

DETECTION = (
    Metric("entropy", "detection AUROC, entropy", True),
    Metric("mutual_information", "detection AUROC, mutual information", True),
)
"""How well an uncertainty tells out-of-distribution items from those of the test split."""


@dataclass(frozen=True)
class Score:
    """A metric of a row.

    Attributes:
        mean: Mean over seeds; NaN where the metric is not defined.
        std: Sample standard deviation over seeds; NaN for one seed.
        mark: "best", "tied" with the best, or "".
    """

    mean: float
    std: float
    mark: Mark


class Resampling:
    """Draws of items and seeds that all rows of a comparison share.

    Args:
        resamples: Number of resamples R. Every array of this class and of what is computed from it has 1 + R entries:
            first the sample itself, then the resamples.
        seed: Seed of the draws; the same seed gives the same marks.
    """

    def __init__(self, resamples: int = 1000, seed: int = 0):
        self.resamples = resamples
        self._generator = numpy.random.default_rng(seed)
        self._seed_shares: dict[tuple[int, ...], numpy.ndarray] = {}

    def item_counts(self, items: int) -> numpy.ndarray:
        """How often each item is drawn [1 + resamples, items]; each call draws anew."""
        return self._counts(items)

    def seed_shares(self, seeds: Sequence[int]) -> numpy.ndarray:
        """Share of each seed in the mean over seeds [seeds, 1 + resamples]; equal seeds get equal draws."""
        key = tuple(seeds)
        if key not in self._seed_shares:
            self._seed_shares[key] = self._counts(len(key)).T / len(key)
        return self._seed_shares[key]

    def _counts(self, number: int) -> numpy.ndarray:
        drawn = self._generator.multinomial(number, numpy.full(number, 1 / number), size=self.resamples)
        return numpy.concatenate([numpy.ones((1, number)), drawn])


def metric_values(
    probabilities: numpy.ndarray, labels: numpy.ndarray, counts: numpy.ndarray
) -> dict[str, numpy.ndarray]:
    """The `METRICS` of each resample, by name; each [resamples].

    They are those of `bayeslora.metrics` for a sample that has item i `counts[:, i]` times.

    Args:
        probabilities: [items, choices].
        labels: [items].
        counts: [resamples, items]; each row sums to the same number.
    """
    rows, targets = checked(probabilities, labels)
    top, is_right = top_choice(rows, targets)
    confidence = top.clamp_max(1 - torch.finfo(top.dtype).eps / 2).numpy()
    of_label = rows.gather(1, targets[:, None]).squeeze(1)
    surprise = -of_label.clamp_min(SMALLEST_PROBABILITY).log()
    squared_error = rows.square().sum(1) - 2 * of_label + 1
    number = counts[0].sum()
    levels, size, right = _by_level(confidence, is_right.numpy(), counts)
    gap = right - levels * size
    return {
        "accuracy": right.sum(1) / number,
        "nll": counts @ surprise.numpy() / number,
        "brier": counts @ squared_error.numpy() / number,
        "auroc": _auroc(size, right),
        **_equal_width_errors(levels, size, gap),
        "adaptive_ece": _equal_mass_error(levels, size, gap),
        **_selective(size, size - right),
    }


def detection_auroc(
    inside: numpy.ndarray, outside: numpy.ndarray, inside_counts: numpy.ndarray, outside_counts: numpy.ndarray
) -> numpy.ndarray:
    """`bayeslora.metrics.out_of_distribution_auroc` of each resample [resamples].

    Args:
        inside: Uncertainty of the test items [inside items].
        outside: Uncertainty of the out-of-distribution items [outside items].
        inside_counts: [resamples, inside items].
        outside_counts: [resamples, outside items].
    """
    is_outside = numpy.repeat([False, True], [len(inside), len(outside)])
    counts = numpy.concatenate([inside_counts, outside_counts], axis=1)
    _, size, positive = _by_level(numpy.concatenate([inside, outside]), is_outside, counts)
    return _auroc(size, positive)


def compare(
    values: Mapping[str, Mapping[int, numpy.ndarray]], resampling: Resampling, *, higher_is_better: bool
) -> dict[str, Score]:
    """The score of each row, with the best one and those tied with it marked.

    The best row has the best mean over seeds (all rows of that mean, if several have it). A row is tied with it if the
    95 % interval of the difference of their means contains 0. The interval is the basic bootstrap interval
    [2 d - q(0.975), 2 d - q(0.025)], d the difference and q the quantiles of its resamples (Davison and Hinkley 1997,
    Bootstrap Methods and their Application, section 2.4): resampling makes a calibration error larger, the more so the
    smaller it is, and this interval takes that bias away where the percentile interval would double it.

    The resamples vary items and seeds. With few seeds this understates the seeds' share (drawing from n of them gives
    (n - 1) / n of their variance), and with one seed it leaves it out. Nothing is corrected for the number of rows.

    Args:
        values: For each row and each of its seeds the metric of each resample [1 + resamples], the sample itself first.
            Rows whose metric is NaN are not marked.
        resampling: What the metrics were resampled with.
        higher_is_better: The direction of the metric.
    """
    means = {
        row: (resampling.seed_shares(list(by_seed)) * numpy.stack(list(by_seed.values()))).sum(0)
        for row, by_seed in values.items()
    }
    defined = {row: mean for row, mean in means.items() if math.isfinite(mean[0])}
    marks: dict[str, Mark] = {}
    if defined:
        choose = max if higher_is_better else min
        best = choose(defined.values(), key=lambda mean: float(mean[0]))
        marks = {row: _mark(mean - best) for row, mean in defined.items()}
    return {
        row: Score(float(means[row][0]), _deviation([value[0] for value in by_seed.values()]), marks.get(row, ""))
        for row, by_seed in values.items()
    }


def _mark(difference: numpy.ndarray) -> Mark:
    """The mark of a row by its difference to the best one [1 + resamples]."""
    if abs(difference[0]) < _SAME:
        return "best"
    low, high = numpy.nanquantile(difference[1:], _INTERVAL)
    return "tied" if low <= 2 * difference[0] <= high else ""


def _deviation(values: Sequence[float]) -> float:
    return float(numpy.std(values, ddof=1)) if len(values) > 1 else math.nan


def _by_level(
    scores: numpy.ndarray, positive: numpy.ndarray, counts: numpy.ndarray
) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """Items of equal score taken together, in ascending order.

    Returns:
        Scores [levels], and for each resample the number of items and of positive items [resamples, levels].
    """
    order = numpy.argsort(scores, kind="stable")
    levels, starts = numpy.unique(scores[order], return_index=True)
    ordered = counts[:, order]
    size = numpy.add.reduceat(ordered, starts, axis=1)
    return levels, size, numpy.add.reduceat(ordered * positive[order], starts, axis=1)


def _auroc(size: numpy.ndarray, positive: numpy.ndarray) -> numpy.ndarray:
    """Probability that a positive item scores higher than a negative one, equal ones half [resamples]; NaN without."""
    negative = size - positive
    below = negative.cumsum(1) - negative / 2
    pairs = positive.sum(1) * negative.sum(1)
    return numpy.divide((positive * below).sum(1), pairs, out=numpy.full(len(pairs), math.nan), where=pairs > 0)


def _equal_width_errors(levels: numpy.ndarray, size: numpy.ndarray, gap: numpy.ndarray) -> dict[str, numpy.ndarray]:
    """ECE and MCE [resamples]; gap [resamples, levels] is the number of right items minus the sum of confidences."""
    # Torch's edges: those of the metrics, which differ from numpy's in the last bit.
    edges = torch.linspace(0, 1, _BINS + 1, dtype=torch.float64).numpy()
    in_bin = (numpy.searchsorted(edges, levels, side="right") - 1)[:, None] == numpy.arange(_BINS)
    gaps, items = numpy.abs(gap @ in_bin), size @ in_bin
    largest = numpy.divide(gaps, items, out=numpy.zeros_like(gaps), where=items > 0).max(1)
    return {"ece": gaps.sum(1) / size.sum(1), "mce": largest}


def _equal_mass_error(levels: numpy.ndarray, size: numpy.ndarray, gap: numpy.ndarray) -> numpy.ndarray:
    """Adaptive ECE [resamples]: bins between the quantiles of the confidence, linearly interpolated as torch does."""
    drawn = size.cumsum(1)
    number = int(drawn[0, -1])
    rank = torch.linspace(0, 1, _BINS + 1, dtype=torch.float64)[1:-1] * (number - 1)
    lower, weight = rank.floor(), rank - rank.floor()
    # The k-th smallest confidence, from 0, is that of the first level up to which more than k items were drawn.
    below, above = (
        numpy.stack([levels[(drawn <= k).sum(1)] for k in places.numpy()], axis=1) for places in (lower, rank.ceil())
    )
    edges = torch.lerp(torch.from_numpy(below), torch.from_numpy(above), weight).numpy()
    borders = numpy.searchsorted(levels, edges, side="left")
    sums = numpy.pad(gap.cumsum(1), ((0, 0), (1, 0)))
    ends = numpy.pad(borders, ((0, 0), (1, 1)), constant_values=((0, 0), (0, len(levels))))
    return numpy.abs(numpy.diff(numpy.take_along_axis(sums, ends, axis=1), axis=1)).sum(1) / number


def _selective(size: numpy.ndarray, wrong: numpy.ndarray) -> dict[str, numpy.ndarray]:
    """AURC and accuracy at 80 % coverage [resamples]; items of one level are wrong as often as their mean.

    With M items and E errors among those more confident than a level of m items and error rate e, the risk after k of
    all items, M < k <= M + m, is (E + e (k - M)) / k = e + (E - e M) / k, whose sum over k has harmonic numbers.
    """
    size, wrong = size[:, ::-1], wrong[:, ::-1]
    number = int(size[0].sum())
    rate = numpy.divide(wrong, size, out=numpy.zeros_like(wrong), where=size > 0)
    end = size.cumsum(1)
    start = end - size
    harmonic = numpy.pad((1 / numpy.arange(1, number + 1)).cumsum(), (1, 0))
    steps = harmonic[end.astype(int)] - harmonic[start.astype(int)]
    risks = wrong + (wrong.cumsum(1) - wrong - rate * start) * steps
    answered = share_of(number, _COVERAGE)
    errors = (rate * (answered - start).clip(0, size)).sum(1)
    return {"aurc": risks.sum(1) / number, "accuracy_at_80": 1 - errors / answered}

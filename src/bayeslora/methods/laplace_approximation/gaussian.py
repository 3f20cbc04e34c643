"""The predictive of Gaussian logits: the mean softmax, by quasi-Monte-Carlo."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from bayeslora.prediction.predictive import Predictive

LOGIT_DRAWS = 4096
"""Points of the integral. Measured on Gaussians of 2 to 20 choices with standard deviations of 1 to 100: the
probabilities are off by 0.0002 to 0.0024 (root mean square), where as many random draws are off by up to 0.0046."""

_CHUNK = 2**21
"""Logits that are alive at once, 16 MiB; a few copies of them are made."""


class GaussianLogits(Predictive):
    """Predictive of logits N(mean, root root^T), kept as such: its draws are made a few items at a time, when asked.

    The draws are the points of `normal_points`, the same for each item. They come in pairs +z and -z, so with two
    choices the likelier one is that of the mean: sigmoid(m + e) + sigmoid(m - e) > 1 where m > 0.

    >>> logits = GaussianLogits(torch.tensor([[1.0, 0.0]]), 3 * torch.eye(2).unsqueeze(0))
    >>> logits.probabilities  # less sure than softmax((1, 0)) = (0.73, 0.27)
    tensor([[0.5862, 0.4138]])
    >>> logits.samples.shape
    torch.Size([4096, 1, 2])

    Args:
        mean: [batch, choices]; -inf for choices that an item does not have.
        root: Root of the covariance [batch, choices, choices], zero for these choices.
        seed: Moves the points; results of other seeds differ by the error of the integral.
        variance_ratio: Posterior over prior variance of the scores [batch], where it is known: near 1 where the
            training items say nothing. Then `root` is that of contrasts between the choices, without what they share.
    """

    mean: Tensor
    root: Tensor
    seed: int
    variance_ratio: Tensor | None

    def __init__(self, mean: Tensor, root: Tensor, seed: int = 0, variance_ratio: Tensor | None = None):
        vars(self).update(mean=mean, root=root, seed=seed, variance_ratio=variance_ratio)

    @property
    def further(self) -> dict[str, Tensor]:
        """`variance_ratio`, where it is known."""
        return {} if self.variance_ratio is None else {"variance_ratio": self.variance_ratio}

    @property
    def samples(self) -> Tensor:
        """Log-probabilities [LOGIT_DRAWS, batch, choices] of all draws, nats: large for many items."""
        return torch.cat([part.samples for part in self._parts()], 1).to(self.mean)

    @cached_property
    def log_probabilities(self) -> Tensor:
        """log of the mean probability [batch, choices], nats."""
        return self._by_parts(lambda part: part.log_probabilities)

    @cached_property
    def mutual_information(self) -> Tensor:
        """Predictive entropy minus mean entropy of the draws [batch], nats."""
        return self._by_parts(lambda part: part.mutual_information)

    @cached_property
    def spread(self) -> Tensor:
        """Standard deviation over draws of the predicted choice's probability [batch]."""
        return self._by_parts(lambda part: part.spread)

    def tempered(self, temperature: float) -> Predictive:
        """The mean logits divided by `temperature`, with the covariance as it is: again a Gaussian.

        Divided too, it would keep its size against the mean, and where it is too large no temperature could mend that.
        """
        return GaussianLogits(self.mean / temperature, self.root, self.seed, self.variance_ratio)

    def rescaled(self, factors: Tensor) -> Predictive | None:
        """With the logit of each choice times its factor [batch, choices]: again a Gaussian; None for contrasts."""
        if self.variance_ratio is not None:
            return None
        return GaussianLogits(self.mean * factors, self.root * factors.unsqueeze(-1), self.seed)

    def take(self, indices: Tensor) -> Predictive:
        """That of the items `indices`."""
        ratio = None if self.variance_ratio is None else self.variance_ratio[indices]
        return GaussianLogits(self.mean[indices], self.root[indices], self.seed, ratio)

    def cpu(self) -> Predictive:
        """With its tensors on the CPU."""
        ratio = None if self.variance_ratio is None else self.variance_ratio.cpu()
        return GaussianLogits(self.mean.cpu(), self.root.cpu(), self.seed, ratio)

    @classmethod
    def _joined(cls, parts: Sequence[Predictive]) -> Predictive:
        gaussians = [part for part in parts if isinstance(part, GaussianLogits)]
        width = max(part.mean.shape[-1] for part in gaussians)
        gaps = [width - part.mean.shape[-1] for part in gaussians]
        means = [nn.functional.pad(p.mean, (0, gap), value=-torch.inf) for p, gap in zip(gaussians, gaps, strict=True)]
        roots = [nn.functional.pad(p.root, (0, gap, 0, gap)) for p, gap in zip(gaussians, gaps, strict=True)]
        ratios = [part.variance_ratio for part in gaussians if part.variance_ratio is not None]
        ratio = torch.cat(ratios) if len(ratios) == len(gaussians) else None
        return cls(torch.cat(means), torch.cat(roots), gaussians[0].seed, ratio)

    def _by_parts(self, quantity: Callable[[Predictive], Tensor]) -> Tensor:
        return torch.cat([quantity(part) for part in self._parts()]).to(self.mean)

    def _parts(self) -> Iterator[Predictive]:
        """All draws of a few items, float64."""
        choices = self.mean.shape[-1]
        points = normal_points(LOGIT_DRAWS, choices, self.seed).to(self.mean.device)
        size = max(1, _CHUNK // (LOGIT_DRAWS * choices))
        for mean, root in zip(self.mean.double().split(size), self.root.double().split(size), strict=True):
            yield Predictive(torch.log_softmax(mean + torch.einsum("bij,sj->sbi", root, points), -1))


@lru_cache(maxsize=8)
def normal_points(count: int, dimensions: int, seed: int) -> Tensor:
    """Standard normal quasi-random points in pairs +z, -z: [count, dimensions], float64.

    Sobol's sequence, moved by a random shift of each dimension, through the normal quantile function. Coordinate i
    does not depend on how many dimensions there are, nor point s on how many points (Owen, "Monte Carlo theory,
    methods and examples", chapters 8 and 17).

    Raises:
        ValueError: `count` is odd.
    """
    if count % 2:
        raise ValueError(f"the points come in pairs, so expected an even count, got {count}.")
    shift = torch.from_numpy(np.random.default_rng(seed).random(dimensions))
    sobol = torch.quasirandom.SobolEngine(dimensions, scramble=False).draw(count // 2, dtype=torch.float64)
    half = torch.special.ndtri(((sobol + shift) % 1).clamp(1e-15, 1 - 1e-15))
    return torch.stack([half, -half], 1).flatten(0, 1)

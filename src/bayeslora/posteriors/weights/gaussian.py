"""Mean-field Gaussian weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bayeslora.posteriors.weights.base import KL, Noise, WeightPosterior, no_kl
from bayeslora.posteriors.weights.whitening import at_least_float32


@dataclass(frozen=True)
class GaussianWeights(WeightPosterior):
    """q(W) = N(mean, diag(std^2)) with prior N(0, prior_std^2) on every weight.

    Args:
        rows: o.
        columns: i.
        std: Standard deviation at the start, in units of the weight.
        prior_std: That of the prior.
        flipout: Whether each row of a training batch has its own signs of the perturbation.

    Raises:
        ValueError: A standard deviation is not positive.
    """

    std: float = 0.01
    prior_std: float = 0.2
    flipout: bool = False

    def __post_init__(self) -> None:
        for name in ("std", "prior_std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")

    @property
    def noise_shapes(self) -> tuple[tuple[int, ...], ...]:
        """One number per weight."""
        return ((self.rows, self.columns),)

    def initial(self, weight: Tensor) -> dict[str, Tensor]:
        """`mean` and `log_std`, `[rows, columns]` each."""
        mean = at_least_float32(weight.detach()).clone()
        return {"mean": mean, "log_std": torch.full_like(mean, math.log(self.std))}

    def mean_weight(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """E[W]."""
        return parameters["mean"]

    def standard_deviation(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Of each weight `[..., rows, columns]`."""
        return parameters["log_std"].exp()

    def sample_weight(self, parameters: Mapping[str, Tensor], noise: Noise) -> Tensor:
        """mean + std * noise."""
        return parameters["mean"] + self.standard_deviation(parameters) * noise.normal[0]

    def kl(self, parameters: Mapping[str, Tensor], noise: Noise | None) -> KL:
        """Closed form, summed over the weights."""
        ratio = self.standard_deviation(parameters) / self.prior_std
        distance = parameters["mean"] / self.prior_std
        per_weight = 0.5 * (ratio.square() + distance.square() - 1) - ratio.log()
        total = per_weight.sum((-2, -1))
        return KL(total, torch.zeros_like(total))


@dataclass(frozen=True)
class FixedGaussianWeights(GaussianWeights):
    """A Gaussian whose standard deviations are set when training has ended; until then the mean alone is at work.

    A subclass names its standard deviations in `fixed`.
    """

    draws_in_training: ClassVar[bool] = False

    def kl(self, parameters: Mapping[str, Tensor], noise: Noise | None) -> KL:
        """None: the loss knows no posterior."""
        return no_kl(parameters["mean"])

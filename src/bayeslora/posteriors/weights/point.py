"""A point mass: one LoRA factor, with nothing random about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bayeslora.posteriors.weights.base import KL, Noise, WeightPosterior, no_kl
from bayeslora.posteriors.weights.whitening import at_least_float32

__all__ = ["PointWeights"]


@dataclass(frozen=True)
class PointWeights(WeightPosterior):
    """W is its mean: plain LoRA as a family, where another family is made of one."""

    draws_in_training: ClassVar[bool] = False

    @property
    def noise_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Nothing is random."""
        return ()

    def initial(self, weight: Tensor) -> dict[str, Tensor]:
        """`mean` `[rows, columns]`."""
        return {"mean": at_least_float32(weight.detach()).clone()}

    def mean_weight(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """W."""
        return parameters["mean"]

    def sample_weight(self, parameters: Mapping[str, Tensor], noise: Noise) -> Tensor:
        """The same W for each draw `[samples, ..., rows, columns]`."""
        mean = parameters["mean"]
        return mean.expand(noise.number.shape[0], *mean.shape)

    def kl(self, parameters: Mapping[str, Tensor], noise: Noise | None) -> KL:
        """None: a point mass has no density."""
        return no_kl(parameters["mean"])

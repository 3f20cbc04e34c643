"""Point masses: several LoRA factors in one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bayeslora.posteriors.weights.base import KL, Noise, WeightPosterior, no_kl
from bayeslora.posteriors.weights.whitening import at_least_float32

__all__ = ["MembersWeights"]


@dataclass(frozen=True)
class MembersWeights(WeightPosterior):
    """K factors with equal weight: draw number s is member s mod K in every factor of the model.

    Args:
        rows: o.
        columns: i.
        members: K.
    """

    location: ClassVar[tuple[str, ...]] = ("members",)

    members: int = 5

    @property
    def noise_shapes(self) -> tuple[tuple[int, ...], ...]:
        """A draw is decided by its number alone."""
        return ()

    def initial(self, weight: Tensor) -> dict[str, Tensor]:
        """`members` `[K, rows, columns]`: K times `weight`."""
        return {"members": at_least_float32(weight.detach()).repeat(self.members, 1, 1)}

    def mean_weight(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The first member: a mean of factors is no trained model."""
        return parameters["members"].select(-3, 0)

    def sample_weight(self, parameters: Mapping[str, Tensor], noise: Noise) -> Tensor:
        """The members of the draws' numbers."""
        return parameters["members"].movedim(-3, 0)[noise.number % self.members]

    def kl(self, parameters: Mapping[str, Tensor], noise: Noise | None) -> KL:
        """None: point masses have no density."""
        return no_kl(parameters["members"], 3)

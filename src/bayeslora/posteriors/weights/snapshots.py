"""Point masses that were taken on the way of one training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bayeslora.posteriors.weights.base import KL, Noise, WeightPosterior, no_kl
from bayeslora.posteriors.weights.whitening import at_least_float32

__all__ = ["SnapshotWeights"]


@dataclass(frozen=True)
class SnapshotWeights(WeightPosterior):
    """A factor that is trained, and K copies of it of earlier moments with equal weight: draw s is copy s mod K.

    Args:
        rows: o.
        columns: i.
        snapshots: K.
    """

    draws_in_training: ClassVar[bool] = False
    fixed: ClassVar[tuple[str, ...]] = ("snapshots",)

    snapshots: int = 4

    @property
    def noise_shapes(self) -> tuple[tuple[int, ...], ...]:
        """A draw is decided by its number alone."""
        return ()

    def initial(self, weight: Tensor) -> dict[str, Tensor]:
        """`mean` `[rows, columns]`, which is `weight`, and `snapshots` `[K, rows, columns]`: K times it."""
        mean = at_least_float32(weight.detach()).clone()
        return {"mean": mean, "snapshots": mean.repeat(self.snapshots, 1, 1)}

    def mean_weight(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """What is trained; afterwards the last snapshot."""
        return parameters["mean"]

    def sample_weight(self, parameters: Mapping[str, Tensor], noise: Noise) -> Tensor:
        """The snapshots of the draws' numbers."""
        return parameters["snapshots"].movedim(-3, 0)[noise.number % self.snapshots]

    def kl(self, parameters: Mapping[str, Tensor], noise: Noise | None) -> KL:
        """None: point masses have no density."""
        return no_kl(parameters["mean"])

"""Point masses: one LoRA factor or several, of which nothing is drawn but which one a draw is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bayeslora.posteriors.weights.base import KL, Noise, WeightPosterior, no_kl
from bayeslora.posteriors.weights.whitening import at_least_float32


@dataclass(frozen=True)
class PointWeights(WeightPosterior):
    """W is its mean: plain LoRA as a family, where another family is made of one."""

    draws_in_training: ClassVar[bool] = False

    @property
    def noise_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Nothing is random but the number of a draw."""
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
        """None: point masses have no density."""
        return no_kl(self.mean_weight(parameters))


@dataclass(frozen=True)
class MembersWeights(PointWeights):
    """K factors with equal weight: draw number s is member s mod K in every factor of the model.

    Args:
        rows: o.
        columns: i.
        members: K.
    """

    draws_in_training: ClassVar[bool] = True
    location: ClassVar[tuple[str, ...]] = ("members",)

    members: int = 5

    def initial(self, weight: Tensor) -> dict[str, Tensor]:
        """`members` `[K, rows, columns]`: K times `weight`."""
        return {"members": at_least_float32(weight.detach()).repeat(self.members, 1, 1)}

    def mean_weight(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The first member: a mean of factors is no trained model."""
        return parameters["members"].select(-3, 0)

    def sample_weight(self, parameters: Mapping[str, Tensor], noise: Noise) -> Tensor:
        """The members of the draws' numbers."""
        return parameters["members"].movedim(-3, 0)[noise.number % self.members]


@dataclass(frozen=True)
class SnapshotWeights(PointWeights):
    """A factor that is trained, and K copies of it of earlier moments with equal weight: draw s is copy s mod K.

    Args:
        rows: o.
        columns: i.
        snapshots: K.
    """

    fixed: ClassVar[tuple[str, ...]] = ("snapshots",)

    snapshots: int = 4

    def initial(self, weight: Tensor) -> dict[str, Tensor]:
        """`mean` `[rows, columns]`, which is `weight`, and `snapshots` `[K, rows, columns]`: K times it."""
        mean = super().initial(weight)["mean"]
        return {"mean": mean, "snapshots": mean.repeat(self.snapshots, 1, 1)}

    def sample_weight(self, parameters: Mapping[str, Tensor], noise: Noise) -> Tensor:
        """The snapshots of the draws' numbers."""
        return parameters["snapshots"].movedim(-3, 0)[noise.number % self.snapshots]

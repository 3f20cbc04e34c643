"""Point masses: several LoRA factors in one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bayeslora.factors.family import KL, Family, Noise

__all__ = ["MembersFamily"]


@dataclass(frozen=True)
class MembersFamily(Family):
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
        """`members` `[K, rows, columns]`: `weight`, or where it is random K matrices of its spread.

        PEFT starts A at random (kaiming_uniform_ with a = sqrt(5)) and B at zero; a zero factor stays zero for all.
        """
        weight = weight.detach().float()
        if weight.is_meta or not weight.any():
            return {"members": weight.repeat(self.members, 1, 1)}
        others = [nn.init.kaiming_uniform_(torch.empty_like(weight), a=5**0.5) for _ in range(self.members - 1)]
        return {"members": torch.stack([weight, *others])}

    def mean_weight(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The first member: a mean of factors is no trained model."""
        return parameters["members"].select(-3, 0)

    def sample_weight(self, parameters: Mapping[str, Tensor], noise: Noise) -> Tensor:
        """The members of the draws' numbers."""
        members = parameters["members"].movedim(-3, 0)
        return members[noise.number % self.members]

    def kl(self, parameters: Mapping[str, Tensor], noise: Noise | None) -> KL:
        """None: point masses have no density."""
        zero = parameters["members"].new_zeros(parameters["members"].shape[:-3])
        return KL(zero, zero)

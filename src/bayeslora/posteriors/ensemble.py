"""Ensemble of point masses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bayeslora.posteriors.base import InducingPosterior, Parameters, log_standard_normal


@dataclass(frozen=True)
class Ensemble(InducingPosterior):
    """q(V) = 1/K sum_k delta(V - V_k).

    Point masses have no density and so no KL. What `kl` gives instead is the negative prior log-density, averaged
    over the members and measured from its minimum: a MAP penalty, which training reports under the same name but
    `has_kl` tells apart. One draw takes the same member k in every factor of the model.

    Args:
        members: Number K of point masses.
    """

    members: int = 5

    name: ClassVar[str] = "ensemble"
    has_kl: ClassVar[bool] = False

    def initial(self, loc: Tensor) -> dict[str, Tensor]:
        """Members `[members, rows, columns]`: `loc` plus deviations of scale `std` that sum to zero."""
        deviations = self.std * torch.randn(self.members, *loc.shape, dtype=loc.dtype, device=loc.device)
        return {"v_members": loc + deviations - deviations.mean(0)}

    def mean(self, parameters: Parameters) -> Tensor:
        """The average of the members."""
        return parameters["v_members"].mean(-3)

    def sample(self, parameters: Parameters, noise: Tensor, uniform: Tensor) -> Tensor:
        """Member floor(uniform * K) of every factor."""
        index = (uniform * self.members).long().clamp(max=self.members - 1)
        return parameters["v_members"].movedim(-3, 0).index_select(0, index)

    def kl(self, parameters: Parameters, noise: Tensor | None) -> Tensor:
        """MAP penalty: mean over members of log N(0; 0, I) - log N(V_k; 0, I), in nats."""
        members = parameters["v_members"]
        return (log_standard_normal(torch.zeros_like(members)) - log_standard_normal(members)).mean(-1)

"""Mean-field Gaussian posterior."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bayeslora.posteriors.base import InducingPosterior, Parameters, gaussian_kl


class Diagonal(InducingPosterior):
    """q(V) = N(loc, diag(std^2)); the default. KL in closed form."""

    name = "diagonal"

    def initial(self, loc: Tensor) -> dict[str, Tensor]:
        """Location and log standard deviation, `[rows, columns]` each."""
        return {"v_loc": loc.clone(), "v_log_std": torch.full_like(loc, math.log(self.std))}

    def sample(self, parameters: Parameters, noise: Tensor, uniform: Tensor) -> Tensor:
        """V = loc + std * noise."""
        return torch.addcmul(parameters["v_loc"], parameters["v_log_std"].exp(), noise)

    def kl(self, parameters: Parameters, noise: Tensor | None) -> Tensor:
        """Closed form."""
        log_std = parameters["v_log_std"]
        return gaussian_kl(parameters["v_loc"], (2 * log_std).exp().sum((-2, -1)), 2 * log_std.sum((-2, -1)))

"""Gaussian posterior with a full covariance over all entries of V."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bayeslora.posteriors.base import InducingPosterior, Parameters, gaussian_kl
from bayeslora.posteriors.matrix_normal import lower_triangular


class Full(InducingPosterior):
    """q(vec V) = N(loc, L L^T) with L lower triangular [rows * columns, rows * columns]."""

    name = "full"

    def initial(self, loc: Tensor) -> dict[str, Tensor]:
        """Location and the raw Cholesky factor."""
        factor = math.log(self.std) * torch.eye(loc.numel(), dtype=loc.dtype, device=loc.device)
        return {"v_loc": loc.clone(), "v_factor": factor}

    def sample(self, parameters: Parameters, noise: Tensor, uniform: Tensor) -> Tensor:
        """vec V = vec loc + L vec noise."""
        factor = lower_triangular(parameters["v_factor"])
        deviation = factor @ noise.flatten(-2).unsqueeze(-1)
        return parameters["v_loc"] + deviation.squeeze(-1).unflatten(-1, (self.rows, self.columns))

    def kl(self, parameters: Parameters, noise: Tensor | None) -> Tensor:
        """Closed form."""
        raw = parameters["v_factor"]
        log_determinant = 2 * raw.diagonal(dim1=-2, dim2=-1).sum(-1)
        return gaussian_kl(parameters["v_loc"], lower_triangular(raw).square().sum((-2, -1)), log_determinant)

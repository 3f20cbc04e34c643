"""Matrix normal posterior: full covariance within rows and within columns."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bayeslora.posteriors.base import InducingPosterior, Parameters, gaussian_kl


def lower_triangular(raw: Tensor) -> Tensor:
    """Cholesky factor from an unconstrained square matrix: strict lower part as it is, diagonal exponentiated."""
    return raw.tril(-1) + torch.diag_embed(raw.diagonal(dim1=-2, dim2=-1).exp())


class MatrixNormal(InducingPosterior):
    """q(V) = MN(loc, R R^T, C C^T) with lower triangular R [rows, rows] and C [columns, columns]."""

    name = "matrix_normal"

    def initial(self, loc: Tensor) -> dict[str, Tensor]:
        """Location and the two raw Cholesky factors; the scale is split evenly between them."""
        log_scale = 0.5 * math.log(self.std)
        return {
            "v_loc": loc.clone(),
            "v_row_factor": log_scale * torch.eye(self.rows, dtype=loc.dtype, device=loc.device),
            "v_column_factor": log_scale * torch.eye(self.columns, dtype=loc.dtype, device=loc.device),
        }

    def sample(self, parameters: Parameters, noise: Tensor, uniform: Tensor) -> Tensor:
        """V = loc + R noise C^T."""
        rows = lower_triangular(parameters["v_row_factor"])
        columns = lower_triangular(parameters["v_column_factor"])
        return parameters["v_loc"] + rows @ noise @ columns.mT

    def kl(self, parameters: Parameters, noise: Tensor | None) -> Tensor:
        """Closed form: tr(C C^T (x) R R^T) factorises, log det = 2 (columns log|R| + rows log|C|)."""
        raw_rows, raw_columns = parameters["v_row_factor"], parameters["v_column_factor"]
        trace = lower_triangular(raw_rows).square().sum((-2, -1)) * lower_triangular(raw_columns).square().sum((-2, -1))
        log_rows = raw_rows.diagonal(dim1=-2, dim2=-1).sum(-1)
        log_columns = raw_columns.diagonal(dim1=-2, dim2=-1).sum(-1)
        log_determinant = 2 * (self.columns * log_rows + self.rows * log_columns)
        return gaussian_kl(parameters["v_loc"], trace, log_determinant)

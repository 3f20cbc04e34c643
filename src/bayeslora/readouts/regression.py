"""Gaussian process regression in closed form: posterior, and what it says of items that it has not seen.

Rasmussen & Williams (2006), equations 2.25, 2.26 and 5.12; the latter here for groups of rows left out together (an
item's contrasts): with P = (K + N)^-1, a = P y and the rows g of a group,

    y_g - f_g | all other rows: mean P_gg^-1 a_g, so E[f_g] = y_g - P_gg^-1 a_g,   Cov[f_g] = P_gg^-1 - N_gg.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Utilities:
    """Gaussians over the latent values of groups of rows, such as the contrasts of items; float64.

    Args:
        mean: [items, size, outputs]; zero where a group is smaller than `size`.
        covariance: [items, size, size], the same for every output; zero there.
    """

    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class Regression:
    """A posterior over functions, given targets at some rows.

    Args:
        factor: Cholesky factor of kernel and noise [rows, rows].
        targets: [rows, outputs].
        noise: Noise variance of each row [rows].
        solved: (K + N)^-1 y [rows, outputs].
    """

    factor: Tensor
    targets: Tensor
    noise: Tensor
    solved: Tensor

    @classmethod
    def condition(cls, kernel: Tensor, targets: Tensor, noise: Tensor | float) -> Regression:
        """The posterior of a prior with this kernel.

        Args:
            kernel: [rows, rows], float64.
            targets: [rows, outputs].
            noise: Variance, of all rows or of each one.

        Raises:
            torch.linalg.LinAlgError: Kernel and noise are not positive definite.
        """
        noise = torch.as_tensor(noise, dtype=kernel.dtype).expand(len(kernel))
        factor = cholesky(kernel + noise.diag())
        return cls(factor, targets, noise, torch.cholesky_solve(targets, factor))

    def predict(self, cross: Tensor, prior: Tensor, places: Tensor) -> Utilities:
        """Posterior of new groups of rows.

        Args:
            cross: Kernel between the new rows and the training rows [new rows, rows].
            prior: Kernel within each group [items, size, size]; without meaning where a group has no such row.
            places: The new row of each member of a group [items, size]; -1 for none.
        """
        real = places >= 0
        reduced = torch.linalg.solve_triangular(self.factor, cross.mT, upper=False).mT
        mean, root = grouped(cross @ self.solved, places), grouped(reduced, places)
        both = real.unsqueeze(1) & real.unsqueeze(2)
        return Utilities(mean, torch.where(both, prior, 0.0) - root @ root.mT)

    def leave_one_out(self, places: Tensor) -> Utilities:
        """Posterior of each group of training rows given all other rows, exact and without a refit.

        Args:
            places: The row of each member of a group [items, size]; -1 for none.
        """
        real = places >= 0
        inverse = torch.cholesky_inverse(self.factor)
        index = places.clamp_min(0)
        both = real.unsqueeze(1) & real.unsqueeze(2)
        identity = torch.eye(places.shape[1], dtype=inverse.dtype)
        block = torch.where(both, inverse[index.unsqueeze(2), index.unsqueeze(1)], identity)
        left = torch.linalg.inv(block)
        mean = grouped(self.targets, places) - left @ grouped(self.solved, places)
        noise = torch.diag_embed(self.noise[index])
        return Utilities(mean, torch.where(both, left - noise, 0.0))


def grouped(rows: Tensor, places: Tensor) -> Tensor:
    """Rows [rows, ...] as [items, size, ...]; zero where a group has no such member."""
    real = places >= 0
    out = torch.zeros(*places.shape, *rows.shape[1:], dtype=rows.dtype)
    out[real] = rows[places[real]]
    return out


def cholesky(covariance: Tensor) -> Tensor:
    """The lower factor of a covariance that rounding may have left singular: of it and the least of a few jitters.

    Raises:
        torch.linalg.LinAlgError: It is far from positive definite, or not finite.
    """
    factor, failed = torch.linalg.cholesky_ex(covariance)
    for share in (1e-12, 1e-10, 1e-8, 1e-6):
        if not bool(failed):
            return factor
        jitter = share * covariance.diagonal().mean()
        factor, failed = torch.linalg.cholesky_ex(
            covariance + jitter * torch.eye(len(covariance), dtype=covariance.dtype)
        )
    return torch.linalg.cholesky(covariance)

"""Gaussian process regression with inducing rows, for more training rows than an exact one can hold.

Functions are phi(x)' v + r(x) with phi(x) = L^-1 k(Z, x), K_ZZ = L L', v standard normal, and a remainder r of variance
k(x, x) - phi(x)'phi(x) that the data leave at its prior (the deterministic training conditional of Quiñonero-Candela &
Rasmussen 2005). With A = I + sum phi phi' / noise, the posterior of v is N(A^-1 sum phi y / noise, A^-1): one pass over
the rows, in chunks, and m^2 numbers for m inducing rows. Where Z is all training rows it is the exact regression.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from bayeslora.readouts.regression import Utilities, grouped

_JITTER = 1e-8


@dataclass(frozen=True)
class SparseRegression:
    """A posterior over functions, given targets at many rows.

    Args:
        factor: L [inducing, inducing].
        precision_factor: Cholesky factor of A [inducing, inducing].
        mean: Of v [inducing, outputs].
    """

    factor: Tensor
    precision_factor: Tensor
    mean: Tensor

    @classmethod
    def condition(cls, inducing: Tensor, chunks: Iterable[tuple[Tensor, Tensor, Tensor]]) -> SparseRegression:
        """The posterior after one pass over the training rows.

        Args:
            inducing: Kernel of the inducing rows [inducing, inducing], float64.
            chunks: For some rows at a time their kernel with the inducing rows [rows, inducing], targets [rows,
                outputs] and noise variances [rows].
        """
        jitter = _JITTER * inducing.diagonal().mean().clamp_min(_JITTER)
        factor = torch.linalg.cholesky(inducing + jitter * torch.eye(len(inducing), dtype=inducing.dtype))
        precision, pull = torch.eye(len(inducing), dtype=inducing.dtype), None
        for cross, targets, noise in chunks:
            features = _features(factor, cross)
            weighted = features / noise.unsqueeze(-1)
            precision.addmm_(features.mT, weighted)
            added = weighted.mT @ targets
            pull = added if pull is None else pull + added
        if pull is None:
            raise ValueError("there are no training rows; expected at least one chunk.")
        precision_factor = torch.linalg.cholesky(precision)
        return cls(factor, precision_factor, torch.cholesky_solve(pull, precision_factor))

    def predict(self, cross: Tensor, prior: Tensor, places: Tensor) -> Utilities:
        """Posterior of new groups of rows.

        Args:
            cross: Kernel between the new rows and the inducing rows [new rows, inducing].
            prior: Kernel within each group [items, size, size].
            places: The new row of each member of a group [items, size]; -1 for none.
        """
        features = _features(self.factor, cross)
        rows, reduced = grouped(features, places), grouped(self._reduced(features), places)
        remainder = _masked(prior, places) - rows @ rows.mT
        return Utilities(grouped(features @ self.mean, places), remainder + reduced @ reduced.mT)

    def leave_one_out(self, cross: Tensor, prior: Tensor, targets: Tensor, noise: Tensor, places: Tensor) -> Utilities:
        """Posterior of groups of training rows, each given all other rows, exact and without a refit.

        Args:
            cross: Kernel between some training rows and the inducing rows [rows, inducing].
            prior: Kernel within each group [items, size, size].
            targets: Of these rows [rows, outputs].
            noise: Their variances [rows], as in `condition`.
            places: The row, of these, of each member of a group [items, size]; -1 for none.
        """
        features = _features(self.factor, cross)
        rows, reduced = grouped(features, places), grouped(self._reduced(features), places)
        known = reduced @ reduced.mT
        # Noise of 1 where a group has no such row leaves it alone.
        noise = torch.where(places >= 0, noise[places.clamp_min(0)], 1.0)
        left = torch.linalg.inv(torch.diag_embed(noise) - known)
        error = grouped(targets - features @ self.mean, places)
        mean = grouped(targets, places) - torch.diag_embed(noise) @ (left @ error)
        return Utilities(mean, _masked(prior, places) - rows @ rows.mT + known + known @ left @ known)

    def _reduced(self, features: Tensor) -> Tensor:
        """Rows whose products are those of `features` under A^-1."""
        return torch.linalg.solve_triangular(self.precision_factor, features.mT, upper=False).mT


def _features(factor: Tensor, cross: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(factor, cross.mT, upper=False).mT


def _masked(blocks: Tensor, places: Tensor) -> Tensor:
    real = places >= 0
    return torch.where(real.unsqueeze(1) & real.unsqueeze(2), blocks, 0.0)

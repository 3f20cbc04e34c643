"""The row and column transforms of an inducing matrix, in whitened form (arXiv 2601.21003, Ritter et al. 2021)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

DIAGONAL_FLOOR = 1e-3
"""Smallest D: keeps K = Z Z^T + D^2 positive definite in float32. It is part of D itself, so the KL and the samples
see the same prior (a jitter added only before the Cholesky would make them differ)."""


class Whitening(NamedTuple):
    """One side of a factor: K = Z Z^T + D^2 = L L^T."""

    projection: Tensor
    """Q = L^-1 Z `[..., inducing, size]`; Q^T Q is P, the share of the prior that the inducing variables explain."""
    remainder: Tensor
    """G = L^-1 D `[..., inducing, inducing]`; Q Q^T + G G^T = I."""
    both: Tensor
    """[Q G], of which those two are views."""

    def project(self, value: Tensor) -> Tensor:
        """Q value `[..., inducing, *]`, of value `[..., size, *]`."""
        return self.projection @ value

    def lift(self, value: Tensor) -> Tensor:
        """Q^T value `[..., size, *]`, of value `[..., inducing, *]`."""
        return self.projection.mT @ value

    def remain(self, value: Tensor) -> Tensor:
        """G value `[..., inducing, *]`, of value `[..., inducing, *]`."""
        return self.remainder @ value

    def project_both(self, value: Tensor) -> Tensor:
        """[Q G] value `[..., inducing, *]`, of value `[..., size + inducing, *]`."""
        return self.both @ value


class DiagonalWhitening(NamedTuple):
    """As `Whitening` of Z = I, whose Q and G are diagonal: no products of matrices."""

    projection: Tensor
    """The diagonal of Q `[..., inducing, 1]`."""
    remainder: Tensor
    """The diagonal of G `[..., inducing, 1]`."""

    def project(self, value: Tensor) -> Tensor:
        """Q value `[..., inducing, *]`."""
        return self.projection * value

    def lift(self, value: Tensor) -> Tensor:
        """Q^T value, the same."""
        return self.projection * value

    def remain(self, value: Tensor) -> Tensor:
        """G value `[..., inducing, *]`."""
        return self.remainder * value

    def project_both(self, value: Tensor) -> Tensor:
        """[Q G] value `[..., inducing, *]`, of value `[..., 2 inducing, *]`."""
        first, second = value.chunk(2, dim=-2)
        return self.projection * first + self.remainder * second


def inducing_diagonal(log_diagonal: Tensor) -> Tensor:
    """D > 0 from its unconstrained parameter, any shape."""
    return log_diagonal.exp() + DIAGONAL_FLOOR


def whiten(basis: Tensor, log_diagonal: Tensor) -> Whitening:
    """Q and G of Z = `basis` `[..., inducing, size]` and D = exp(`log_diagonal`) + floor, `[..., inducing, 1]`.

    Always computed in at least float32: Cholesky has no lower precision.
    """
    basis, log_diagonal = at_least_float32(basis), at_least_float32(log_diagonal)
    root = torch.cat([basis, torch.diag_embed(inducing_diagonal(log_diagonal).squeeze(-1))], dim=-1)
    # K = [Z D] [Z D]^T. cholesky_ex does not synchronise with the host; K is positive definite by the floor on D.
    cholesky = torch.linalg.cholesky_ex(root @ root.mT)[0]
    both = torch.linalg.solve_triangular(cholesky, root, upper=False)
    projection, remainder = both.split([basis.shape[-1], basis.shape[-2]], dim=-1)
    return Whitening(projection, remainder, both)


def whiten_identity(log_diagonal: Tensor) -> DiagonalWhitening:
    """As `whiten` of Z = I, in closed form: K = I + D^2 is diagonal. `[..., inducing, 1]`."""
    diagonal = inducing_diagonal(at_least_float32(log_diagonal))
    inverse = (1 + diagonal.square()).rsqrt()
    return DiagonalWhitening(inverse, diagonal * inverse)


def at_least_float32(value: Tensor) -> Tensor:
    """`value`, widened if it has 16 bits."""
    return value if value.dtype.itemsize >= 4 else value.float()

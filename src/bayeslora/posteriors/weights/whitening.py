"""The row and column transforms of an inducing matrix, in whitened form (arXiv 2601.21003, Ritter et al. 2021)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["DIAGONAL_FLOOR", "Whitening", "at_least_float32", "inducing_diagonal", "whiten", "whiten_identity"]

DIAGONAL_FLOOR = 1e-3
"""Smallest D: keeps K = Z Z^T + D^2 positive definite in float32. It is part of D itself, so the KL and the samples
see the same prior (a jitter added only before the Cholesky would make them differ)."""


class Whitening(NamedTuple):
    """One side of a factor: K = Z Z^T + D^2 = L L^T."""

    projection: Tensor
    """Q = L^-1 Z `[..., inducing, size]`; Q^T Q is P, the share of the prior that the inducing variables explain."""
    remainder: Tensor
    """G = L^-1 D `[..., inducing, inducing]`; Q Q^T + G G^T = I."""


def inducing_diagonal(log_diagonal: Tensor) -> Tensor:
    """D > 0 from its unconstrained parameter, any shape."""
    return log_diagonal.exp() + DIAGONAL_FLOOR


def whiten(basis: Tensor, log_diagonal: Tensor) -> Whitening:
    """Q and G of Z = `basis` `[..., inducing, size]` and D = exp(`log_diagonal`) + floor, `[..., inducing, 1]`.

    Always computed in at least float32: Cholesky has no lower precision.
    """
    basis, log_diagonal = at_least_float32(basis), at_least_float32(log_diagonal)
    diagonal = inducing_diagonal(log_diagonal)
    kernel = basis @ basis.mT + torch.diag_embed(diagonal.squeeze(-1).square())
    # cholesky_ex does not synchronise with the host; K is positive definite by the floor on D.
    cholesky = torch.linalg.cholesky_ex(kernel)[0]
    both = torch.cat([basis, torch.diag_embed(diagonal.squeeze(-1))], dim=-1)
    projection, remainder = torch.linalg.solve_triangular(cholesky, both, upper=False).split(
        [basis.shape[-1], basis.shape[-2]], dim=-1
    )
    return Whitening(projection, remainder)


def whiten_identity(log_diagonal: Tensor) -> Whitening:
    """As `whiten` of Z = I, in closed form: K = I + D^2 is diagonal. `[..., inducing, 1]`."""
    diagonal = inducing_diagonal(at_least_float32(log_diagonal)).squeeze(-1)
    inverse = (1 + diagonal.square()).rsqrt()
    return Whitening(torch.diag_embed(inverse), torch.diag_embed(diagonal * inverse))


def at_least_float32(value: Tensor) -> Tensor:
    """`value`, widened if it has 16 bits."""
    return value if value.dtype.itemsize >= 4 else value.float()

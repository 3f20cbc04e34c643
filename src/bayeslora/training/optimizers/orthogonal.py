"""A factor as an orthonormal basis times its magnitude, and the gradient in that basis."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Orthogonal(NamedTuple):
    """X = U R, the thin QR decomposition of a factor X `[..., size, r]`."""

    basis: Tensor
    """U `[..., size, min(size, r)]`; arbitrary in directions that X does not have."""
    inverse: Tensor
    """R^+ `[..., r, min(size, r)]`, the pseudo-inverse: 0 in directions that X does not have."""


def orthogonal(factor: Tensor) -> Orthogonal:
    """The decomposition of `factor` `[..., size, r]`. A factor of zeros, as B at the start, has R^+ = 0.

    The gradient of the other factor Y of X Y^T is G^T X = G^T U R, so G^T U is that gradient times R^+: what the loss
    says about the update in an orthonormal basis, whatever the size of X.
    """
    basis, magnitude = torch.linalg.qr(factor)
    return Orthogonal(basis, torch.linalg.pinv(magnitude))

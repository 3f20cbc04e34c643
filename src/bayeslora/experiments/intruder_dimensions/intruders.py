"""Intruder dimensions of one weight matrix: singular vectors that the matrix before fine-tuning does not have."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TOP = 10
THRESHOLD = 0.5


@dataclass(frozen=True)
class Spectrum:
    """The largest k singular values of a fine-tuned matrix, seen from the matrix before fine-tuning.

    Attributes:
        left: Left singular vectors u `[out, k]`.
        values: Singular values sigma `[k]`, the largest first.
        right: Right singular vectors v `[in, k]`.
        cosines: Largest absolute cosine of each left vector with any left singular vector of the matrix before `[k]`.
        threshold: A vector whose cosine is below it is an intruder dimension.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    cosines: Tensor
    threshold: float = THRESHOLD

    @property
    def is_intruder(self) -> Tensor:
        """True for intruder dimensions `[k]`."""
        return self.cosines < self.threshold

    @property
    def count(self) -> int:
        """Number of intruder dimensions."""
        return int(self.is_intruder.sum())

    @property
    def intruders(self) -> Spectrum:
        """The intruder dimensions alone."""
        chosen = self.is_intruder
        parts = (self.left[:, chosen], self.values[chosen], self.right[:, chosen], self.cosines[chosen])
        return Spectrum(*parts, self.threshold)


def left_singular_vectors(weight: Tensor) -> Tensor:
    """All left singular vectors `[out, min(out, in)]` of `weight` `[out, in]`, float32 or wider."""
    return torch.linalg.svd(_wide(weight), full_matrices=False)[0]


def spectrum(tuned: Tensor, before: Tensor, top: int = TOP, threshold: float = THRESHOLD) -> Spectrum:
    """The top of `tuned`'s singular value decomposition (Shuttleworth et al., arXiv 2410.21228, algorithm 1).

    Args:
        tuned: W_0 + Delta W `[out, in]`.
        before: `left_singular_vectors(W_0)`.
        top: k, how many singular vectors to look at; a smaller matrix has fewer.
        threshold: epsilon, the cosine below which a vector is an intruder dimension.

    Raises:
        ValueError: `top` is not positive, or the threshold lies outside [0, 1].
    """
    if top < 1 or not 0 <= threshold <= 1:
        raise ValueError(f"top must be at least 1 and threshold in [0, 1], got {top} and {threshold}.")
    left, values, right = torch.linalg.svd(_wide(tuned), full_matrices=False)
    left, values, right = left[:, :top], values[:top], right[:top].mT
    cosines = (left.mT @ before.to(left)).abs().amax(1)
    return Spectrum(left, values, right, cosines, threshold)


def repaired(tuned: Tensor, intruders: Spectrum, scale: float) -> Tensor:
    """W_0 + Delta W + (scale - 1) sum u sigma v^T: the directions kept `scale` times as large `[out, in]`."""
    directions = (intruders.left * intruders.values) @ intruders.right.mT
    return tuned + (scale - 1) * directions.to(tuned)


def _wide(weight: Tensor) -> Tensor:
    """float32, where a singular value decomposition has no lower precision."""
    return weight.detach().to(torch.promote_types(weight.dtype, torch.float32))

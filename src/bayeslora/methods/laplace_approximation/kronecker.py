"""Kronecker-factored curvature of one linear map (KFAC, arXiv 1503.05671; corrected: EKFAC, arXiv 1806.03884)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_FULL_WIDTH = 1024
"""Widest factor that is kept in full by default."""
_DEFAULT_RANK = 10
"""Rank of wider ones, as in arXiv 2308.13111."""


class OuterProductSum:
    """A sum of outer products x x^T, cut to its leading eigenvectors as it grows.

    Kept as rows X with sum X^T X. Exact where `rank` is the width.

    Args:
        width: Length of x.
        rank: How many eigenvectors survive a cut.
    """

    def __init__(self, width: int, rank: int):
        self._rank = min(rank, width)
        self._rows: list[Tensor] = []
        self._limit = 2 * self._rank

    def add(self, rows: Tensor) -> None:
        """Add the outer products of `rows` [count, width]."""
        self._rows.append(rows)
        if sum(map(len, self._rows)) > self._limit:
            values, vectors = self.eigen()
            self._rows = [(vectors * values.sqrt()).T]

    def eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues [k], the largest first, and eigenvectors [width, k]; k is at most `rank`."""
        rows = torch.cat(self._rows)
        _, singular, right = torch.linalg.svd(rows, full_matrices=False)
        negligible = singular[:1] * max(rows.shape) * torch.finfo(rows.dtype).eps
        count = min(self._rank, int((singular > negligible).sum()))
        return singular[:count].square(), right[:count].T


class KroneckerSum:
    """The two Kronecker factors of one map's curvature, as the training items come in.

    Args:
        width_in: Of the map's inputs.
        width_out: Of the map's outputs.
        rank: Of the wider factor; default: full up to a width of 1024, 10 above.
    """

    def __init__(self, width_in: int, width_out: int, rank: int | None = None):
        wide = max(width_in, width_out)
        if rank is None:
            rank = wide if wide <= _FULL_WIDTH else _DEFAULT_RANK
        self._inputs = OuterProductSum(width_in, rank if width_in == wide else width_in)
        self._outputs = OuterProductSum(width_out, rank if width_out == wide else width_out)
        self._widths = width_in, width_out
        self._count = 0

    def add(self, inputs: Tensor, gradients: Tensor) -> None:
        """Add items.

        Args:
            inputs: Of the map [batch, in].
            gradients: At its outputs, for each column of the root of the items' output Hessian [rows, out].
        """
        self._count += len(inputs)
        self._inputs.add(inputs)
        self._outputs.add(gradients)

    def block(self) -> KroneckerBlock:
        """(sum g g^T) (x) (1/N sum a a^T): the curvature of the summed loss of the N items that were added."""
        input_values, input_vectors = self._inputs.eigen()
        output_values, output_vectors = self._outputs.eigen()
        return KroneckerBlock(input_values / self._count, input_vectors, output_values, output_vectors)


@dataclass(frozen=True)
class KroneckerBlock:
    """The curvature of a map's weight [out, in], in its eigenbasis.

    Along the direction output_vectors[:, i] input_vectors[:, j]^T it is output_values[i] * input_values[j]; along
    directions outside of these it is zero, and the posterior is the prior.

    Args:
        input_values: [k].
        input_vectors: [in, k], orthonormal.
        output_values: [m].
        output_vectors: [out, m], orthonormal.
    """

    input_values: Tensor
    input_vectors: Tensor
    output_values: Tensor
    output_vectors: Tensor

    @property
    def eigenvalues(self) -> Tensor:
        """Those that are not zero [m, k]."""
        return torch.outer(self.output_values, self.input_values)

    def covariance(self, jacobian: Tensor, prior_precision: float) -> Tensor:
        """J (curvature + prior_precision I)^-1 J^T, [batch, choices, choices].

        Args:
            jacobian: Gradient of each logit by the weight [batch, choices, out, in].
            prior_precision: Of each weight.
        """
        inside = self.output_vectors.T @ jacobian @ self.input_vectors
        outside = jacobian - self.output_vectors @ inside @ self.input_vectors.T
        inside = inside / (self.eigenvalues + prior_precision).sqrt()
        return _gram(inside) + _gram(outside) / prior_precision


@dataclass(frozen=True)
class CorrectedBlock(KroneckerBlock):
    """The curvature in the same eigenbasis, with what it has along each direction in place of a product (EKFAC).

    Of all matrices that are diagonal in this basis it is the nearest to the curvature (arXiv 1806.03884, theorem 2).

    Args:
        moments: The curvature along the direction output_vectors[:, i] input_vectors[:, j]^T [m, k].
    """

    moments: Tensor

    @property
    def eigenvalues(self) -> Tensor:
        """Those along the basis [m, k]."""
        return self.moments


def _gram(matrices: Tensor) -> Tensor:
    flat = matrices.flatten(2)
    return flat @ flat.mT

"""OPLoRA's alternating update (arXiv 2509.19977): a gradient step on W, projected back to rank r by least squares."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from bayeslora.training.optimizers.base import PairOptimizer, PairStack
from bayeslora.training.optimizers.orthogonal import orthogonal


class LowRank(NamedTuple):
    """A matrix `left @ right` that is never formed."""

    left: Tensor
    """`[..., out, k]`."""
    right: Tensor
    """`[..., k, in]`."""

    def __add__(self, other: LowRank) -> LowRank:  # type: ignore[override]
        """The sum, of rank k + k'."""
        return LowRank(torch.cat([self.left, other.left], -1), torch.cat([self.right, other.right], -2))

    def scaled(self, factor: float) -> LowRank:
        """`factor` times the matrix."""
        return LowRank(factor * self.left, self.right)


class OpLora(PairOptimizer):
    """The alternating update of Almansoori et al., arXiv 2509.19977, with low-rank momentum.

    A step solves `min |B A - (B_t A_t - lr M)|_F^2` over A and B by sweeps of alternating least squares that start at
    B_t, A_t; with many sweeps it ends at the truncated singular value decomposition of the target (SVDLoRA). Each half
    of a sweep has a small proximal term, `damping` times the mean eigenvalue of the other factor's Gram matrix, so that
    it exists where that factor has a lower rank and does not lose directions:

        B <- B + (T - B A) A^T (A A^T + lambda I)^-1,     A <- A + (B^T B + lambda I)^-1 B^T (T - B A)

    An optimizer sees the gradients of A and B, B_t^T G and G A_t^T, but not G. It takes for G the smallest matrix with
    those two gradients: the projection of G on the tangent space of the matrices of rank r,
    P_B G + G P_A - P_B G P_A, of rank 2 r. The momentum M <- momentum M + G is kept at rank 2 r (as much memory as
    AdamW's moments), truncated exactly by a QR decomposition of 4 r columns. Of the paper only the abstract and an
    outline were at hand: the projection and the exact truncation were chosen here (its momentum uses the same
    alternating sweeps), and its K-FAC variant is left out.

    The steps are those of gradient descent, not normalised as AdamW's are: `pair_lr` has to be found for the model at
    hand, apart from `lr`, which is that of the other parameters (AdamW). G is that of B A, so the step on the layer's
    weight is (lora_alpha / r)^2 times that of gradient descent on it.

    Args:
        params: Groups of `parameter_groups(model)`.
        lr: Learning rate; `pair_lr` is that of the pairs.
        momentum: Decay of M; 0: M = G.
        sweeps: Alternating sweeps of a step; the paper finds 1 or 2 enough.
        damping: Of the proximal term, relative.
        shared: As `PairOptimizer`; `betas` and `eps` are AdamW's.

    Raises:
        ValueError: No group holds pairs, or a value is out of range.
    """

    name: ClassVar[str] = "oplora"

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        *,
        momentum: float = 0.9,
        sweeps: int = 1,
        damping: float = 1e-4,
        **shared: Any,
    ):
        if not 0 <= momentum < 1 or sweeps < 1 or not damping > 0:
            raise ValueError(
                "momentum must lie in [0, 1), sweeps be at least 1 and damping positive, got "
                f"{momentum}, {sweeps} and {damping}."
            )
        own = {"momentum": momentum, "sweeps": sweeps, "damping": damping}
        super().__init__(params, lr, options=own, **shared)

    def update_pairs(self, stacks: list[PairStack]) -> None:
        """One step."""
        for stack in stacks:
            a, b = stack.weights()
            start = LowRank(stack.shrinkage * b, stack.shrinkage * a)
            move = self._momentum(stack, tangent_gradient(LowRank(b, a), *stack.gradients()))
            move, current = move.scaled(-stack.group["lr"]), start
            for _ in range(stack.group["sweeps"]):
                current = alternating_sweep(current, start, move, stack.group["damping"])
            stack.assign(current.right, current.left)

    def _momentum(self, stack: PairStack, gradient: LowRank) -> LowRank:
        """M of this step."""
        decay = stack.group["momentum"]
        if decay == 0:
            return gradient
        if stack.step > 1:
            earlier = LowRank(stack.read("momentum_left"), stack.read("momentum_right"))
            gradient = truncate(earlier.scaled(decay) + gradient, gradient.left.shape[-1])
        stack.write(momentum_left=gradient.left, momentum_right=gradient.right)
        return gradient


def tangent_gradient(pair: LowRank, grad_a: Tensor, grad_b: Tensor) -> LowRank:
    """The smallest matrix G with B^T G = `grad_a` and G A^T = `grad_b`, of rank 2 r; `pair` is (B, A).

    P_B G + G P_A - P_B G P_A with the projections on the columns of B and the rows of A.
    """
    column, row = orthogonal(pair.left), orthogonal(pair.right.mT)
    from_a = column.inverse.mT @ grad_a  # U^T G
    from_b = grad_b @ row.inverse  # G Q
    rest = from_b - column.basis @ (from_a @ row.basis)
    return LowRank(torch.cat([column.basis, rest], -1), torch.cat([from_a, row.basis.mT], -2))


def alternating_sweep(current: LowRank, start: LowRank, move: LowRank, damping: float) -> LowRank:
    """B and then A of `current` by least squares, towards the matrix `start + move`.

    Never increases `|B A - (start + move)|_F`.
    """
    (b, a), (b0, a0) = current, start
    # The residual from differences of factors: exact where they have not moved yet.
    residual = LowRank(b0 - b, a0) + LowRank(b, a0 - a) + move
    b = b + _solve(a @ a.mT, (residual.left @ (residual.right @ a.mT)).mT, damping).mT
    residual = LowRank(b0 - b, a0) + LowRank(b, a0 - a) + move
    a = a + _solve(b.mT @ b, (b.mT @ residual.left) @ residual.right, damping)
    return LowRank(b, a)


def truncate(matrix: LowRank, rank: int) -> LowRank:
    """The closest matrix of rank `rank`, by the singular value decomposition of a k x k matrix.

    The singular values are shared evenly between both factors. A matrix of fewer rows or columns than `rank` gets
    zeros.
    """
    left, left_size = torch.linalg.qr(matrix.left)
    right, right_size = torch.linalg.qr(matrix.right.mT)
    u, values, v = torch.linalg.svd(left_size @ right_size.mT, full_matrices=False)
    kept = min(rank, values.shape[-1])
    root = values[..., :kept].sqrt()
    first = (left @ u[..., :kept]) * root.unsqueeze(-2)
    second = root.unsqueeze(-1) * (v[..., :kept, :] @ right.mT)
    missing = rank - kept
    return LowRank(torch.nn.functional.pad(first, (0, missing)), torch.nn.functional.pad(second, (0, 0, 0, missing)))


def _solve(gram: Tensor, right: Tensor, damping: float) -> Tensor:
    """(gram + lambda I)^-1 right; 0 where gram is zero, for then so is `right`."""
    mean = gram.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
    ridge = damping * mean + torch.finfo(gram.dtype).tiny
    cholesky = torch.linalg.cholesky_ex(gram + torch.diag_embed(ridge.expand(*gram.shape[:-1])))[0]
    return torch.cholesky_solve(right, cholesky)

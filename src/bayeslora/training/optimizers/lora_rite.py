"""LoRA-RITE (arXiv 2410.20625): an adaptive optimizer that does not see how B A is split into B and A."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from bayeslora.training.optimizers.base import PairOptimizer, PairStack
from bayeslora.training.optimizers.orthogonal import Orthogonal, orthogonal


class LoraRite(PairOptimizer):
    """Robust invariant transformation equilibration (Yen et al., arXiv 2410.20625).

    Write the update as X Y^T with X = B `[out, r]`, Y = A^T `[in, r]`, and X = U_X R_X, Y = U_Y R_Y. For X, and with
    the roles exchanged for Y:

        g  = dX R_Y^-1                               the gradient in an orthonormal basis of Y, clipped
        P  = U_Y,t^T U_Y,t-1                         carries the moments over to the new basis
        V <- beta2 P V P^T + (1 - beta2) g^T g / out
        M <- beta1 M P^T + (1 - beta1) g V^(-1/2)
        X <- X - lr M R_Y^-T

    For any invertible T, the pair (X T, Y T^-T) has the same product and, updated so, keeps it: V, M and g only rotate
    with the basis. The decays are corrected for the start as in the authors' PyTorch code
    (github.com/gkevinyen5418/LoRA-RITE): beta (1 - beta^(t-1)) / (1 - beta^t).

    Where a factor has no size in a direction (B = 0 at the start, a factor of lower rank), R^-1 is the pseudo-inverse:
    the other factor neither gets a gradient nor moves there. So the first step moves B alone. The invariance is exact
    from B = 0 and wherever both factors have full rank.

    Left out: the paper's escaped mass (which that code switches off), and that code's skipping of steps whose gradient
    is large. Eigenvalues of V below r times the machine precision of the largest are raised to it: they are rounding
    errors.

    The Trainer's `max_grad_norm` rescales the raw gradients, whose norm depends on the split; set it to 0 to have the
    invariance exactly. Here `clip_norm` bounds the invariant norm.

    Args:
        params: Groups of `parameter_groups(model)`.
        lr: Learning rate; as in AdamW the size of a step in each direction, here of B A in an orthonormal basis.
        clip_norm: Bound of the norm of all g of a step together; 0: none.
        eps_root: Added to the square roots of the eigenvalues of V; in units of g.
        shared: As `PairOptimizer`; `betas` are those above and AdamW's, `eps` is AdamW's alone.

    Raises:
        ValueError: No group holds pairs, or a value is out of range.
    """

    name: ClassVar[str] = "lora_rite"

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        *,
        clip_norm: float = 1.0,
        eps_root: float = 1e-6,
        **shared: Any,
    ):
        if clip_norm < 0 or not eps_root > 0:
            raise ValueError(f"clip_norm must be at least 0 and eps_root positive, got {clip_norm} and {eps_root}.")
        super().__init__(params, lr, options={"clip_norm": clip_norm, "eps_root": eps_root}, **shared)

    def update_pairs(self, stacks: list[PairStack]) -> None:
        """One step; the gradients of all pairs are clipped together."""
        weights = [stack.weights() for stack in stacks]
        bases = [(orthogonal(a.mT), orthogonal(b)) for a, b in weights]
        gradients = []
        for stack, (of_a, of_b) in zip(stacks, bases, strict=True):
            grad_a, grad_b = stack.gradients()
            gradients.append((grad_a.mT @ of_b.inverse, grad_b @ of_a.inverse))
        share = _clipping(gradients, stacks[0].group["clip_norm"])
        for stack, (a, b), (of_a, of_b), (grad_a, grad_b) in zip(stacks, weights, bases, gradients, strict=True):
            scale, lr = share.to(grad_a.device, grad_a.dtype), stack.group["lr"]
            move_a = self._move(stack, "a", scale * grad_a, of_b).mT
            move_b = self._move(stack, "b", scale * grad_b, of_a)
            stack.assign(stack.shrinkage * a - lr * move_a, stack.shrinkage * b - lr * move_b)

    def _move(self, stack: PairStack, side: str, gradient: Tensor, other: Orthogonal) -> Tensor:
        """What to take from the factor `side`, per unit of learning rate, `[pairs, ..., size, r]`."""
        first, second = (corrected_decay(beta, stack.step) for beta in stack.group["betas"])
        squares = (1 - second) * gradient.mT @ gradient / gradient.shape[-2]
        if stack.step > 1:
            rotation = other.basis.mT @ stack.read(f"basis_of_{side}")
            squares = squares + second * rotation @ stack.read(f"squares_{side}") @ rotation.mT
        squares = (squares + squares.mT) / 2
        momentum = (1 - first) * gradient @ inverse_root(squares, stack.group["eps_root"])
        if stack.step > 1:
            momentum = momentum + first * stack.read(f"momentum_{side}") @ rotation.mT
        names = (f"basis_of_{side}", f"squares_{side}", f"momentum_{side}")
        stack.write(**dict(zip(names, (other.basis, squares, momentum), strict=True)))
        return momentum @ other.inverse.mT


def corrected_decay(beta: float, step: int) -> float:
    """The decay with which a plain recursion gives the bias-corrected moving average; `step` counts from 1."""
    return beta * (1 - beta ** (step - 1)) / (1 - beta**step)


def inverse_root(matrix: Tensor, eps: float) -> Tensor:
    """1 / (matrix^(1/2) + eps) of symmetric positive semi-definite matrices `[..., r, r]`."""
    values, vectors = torch.linalg.eigh(matrix)
    floor = matrix.shape[-1] * torch.finfo(matrix.dtype).eps * values[..., -1:].clamp_min(0)
    return vectors / (values.maximum(floor).sqrt() + eps).unsqueeze(-2) @ vectors.mT


def _clipping(gradients: list[tuple[Tensor, Tensor]], bound: float) -> Tensor:
    """What to multiply all gradients by so that their common norm is at most `bound`, a scalar."""
    first = gradients[0][0]
    if bound == 0:
        return first.new_ones(())
    norms = [torch.linalg.vector_norm(part).to(first.device, first.dtype) for pair in gradients for part in pair]
    return (bound / torch.linalg.vector_norm(torch.stack(norms))).clamp_max(1)

"""RefLoRA (arXiv 2505.18877): AdamW on the gradients of the balanced factorisation of B A."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from bayeslora.training.optimizers.adamw import adamw_update
from bayeslora.training.optimizers.base import PairOptimizer, PairStack


class RefLora(PairOptimizer):
    """Refactored low-rank adaptation (Zhang, Li and Giannakis, arXiv 2505.18877).

    Of all (P^T A, B P^-T), which have the product B A, the method takes a step with that whose S = P P^T solves
    S (A A^T) S = B^T B:

        grad A <- S^-1 grad A,     grad B <- grad B S,     then AdamW

    which is gradient descent on the refactored factors, written for A and B. That S minimises the sum
    `tr(S A A^T) + tr(S^-1 B^T B) = |P^T A|^2 + |B P^-T|^2`. To first order that bounds how far a gradient step moves
    the product, `|d(B A)| <= lr |G| (|P^T A|^2 + |B P^-T|^2)`, and so the loss after it; at the minimum both factors
    have the same Gram matrix and the sum is twice the nuclear norm of B A. Of the paper only the abstract and the
    authors' code (github.com/zhangyilang/RefLoRA, `warmup_steps=100`) were at hand: this bound was derived here.

    The scalar form (RefLoRA-S) takes `S = |B| / |A|` times the identity. AdamW divides by the size of the gradients and
    would undo a constant factor, so, as in the authors' code, the factors themselves are rescaled after each step, from
    the last step of the warm-up on: A <- sqrt(S) A, B <- B / sqrt(S), and AdamW's moments with them. B A does not
    change. Means of random factors (Bayesian-LoRA), whose noise has a size of its own, are not rescaled: there S
    multiplies the gradients.

    The first `warmup_steps` steps are plain AdamW: at the start B = 0 and there is nothing to balance. Where a factor
    is zero later, S = 1.

    Args:
        params: Groups of `parameter_groups(model)`.
        lr: Learning rate, as AdamW's.
        scalar: The scalar form.
        warmup_steps: Steps of plain AdamW at the start.
        shared: As `PairOptimizer`.

    Raises:
        ValueError: No group holds pairs, or a value is out of range.
    """

    name: ClassVar[str] = "reflora"

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        *,
        scalar: bool = False,
        warmup_steps: int = 100,
        **shared: Any,
    ):
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps must be at least 0, got {warmup_steps}.")
        super().__init__(params, lr, options={"scalar": scalar, "warmup_steps": warmup_steps}, **shared)

    def update_pairs(self, stacks: list[PairStack]) -> None:
        """One step of AdamW on the gradients of the refactored pairs."""
        for stack in stacks:
            warmup = stack.group["warmup_steps"]
            rescales = stack.group["scalar"] and not stack.group["random"]
            grad_a, grad_b = stack.gradients()
            if stack.step > warmup and not rescales:
                grad_a, grad_b = _refactored_gradients(stack, grad_a, grad_b)
            adamw_update([*stack.a, *stack.b], [*grad_a.unbind(), *grad_b.unbind()], self.state, stack.group)
            # Before the next step, which is the first one after the warm-up or a later one.
            if stack.step >= warmup and rescales:
                _rescale(stack)


def refactoring(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """S and S^-1 `[..., r, r]` of A `[..., r, in]` and B `[..., out, r]`: S (A A^T) S = B^T B.

    S = K_A^(-1/2) (K_A^(1/2) K_B K_A^(1/2))^(1/2) K_A^(-1/2) with K_A = A A^T, K_B = B^T B, symmetric and positive
    definite. Eigenvalues below r times the machine precision of the largest are raised to it. The identity where a
    factor is zero.
    """
    root, inverse_root = _roots(a @ a.mT)
    middle, inverse_middle = _roots(root @ (b.mT @ b) @ root)
    scale, inverse = inverse_root @ middle @ inverse_root, root @ inverse_middle @ root
    # Rounding leaves the two halves apart in the last digits.
    scale, inverse = ((matrix + matrix.mT) / 2 for matrix in (scale, inverse))
    present = (_norm(a) > 0) & (_norm(b) > 0)
    identity = torch.eye(a.shape[-2], dtype=a.dtype, device=a.device)
    return torch.where(present, scale, identity), torch.where(present, inverse, identity)


def scalar_refactoring(a: Tensor, b: Tensor) -> Tensor:
    """`S = |B| / |A|`, `[..., 1, 1]`; 1 where a factor is zero."""
    size_a, size_b = _norm(a), _norm(b)
    return torch.where((size_a > 0) & (size_b > 0), size_b / size_a, 1.0)


def _norm(matrix: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(matrix, keepdim=True)


def _roots(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """matrix^(1/2) and matrix^(-1/2)."""
    values, vectors = torch.linalg.eigh(matrix)
    floor = matrix.shape[-1] * torch.finfo(matrix.dtype).eps * values[..., -1:]
    roots = values.maximum(floor).clamp_min(torch.finfo(matrix.dtype).tiny).sqrt().unsqueeze(-2)
    return vectors * roots @ vectors.mT, vectors / roots @ vectors.mT


class RefLoraScalar(RefLora):
    """RefLoRA-S: `RefLora` with `scalar=True`."""

    name = "reflora_scalar"

    def __init__(self, params: Iterable[dict[str, Any]], lr: float = 1e-3, **options: Any):
        super().__init__(params, lr, **{"scalar": True, **options})


def _refactored_gradients(stack: PairStack, grad_a: Tensor, grad_b: Tensor) -> tuple[Tensor, Tensor]:
    a, b = stack.weights()
    if stack.group["scalar"]:
        scale = scalar_refactoring(a, b)
        return grad_a / scale, grad_b * scale
    matrix, inverse = refactoring(a, b)
    return inverse @ grad_a, grad_b @ matrix


def _rescale(stack: PairStack) -> None:
    """Give A and B the same norm; AdamW's moments are those of gradients, which scale the other way."""
    a, b = stack.weights()
    root = scalar_refactoring(a, b).sqrt()
    stack.assign(a * root, b / root)
    for parameters, factor in ((stack.a, 1 / root), (stack.b, root)):
        _multiply([stack.state[parameter]["exp_avg"] for parameter in parameters], factor)
        _multiply([stack.state[parameter]["exp_avg_sq"] for parameter in parameters], factor.square())


def _multiply(tensors: Sequence[Tensor], factor: Tensor) -> None:
    torch._foreach_copy_(list(tensors), list((torch.stack(list(tensors)) * factor).unbind()))

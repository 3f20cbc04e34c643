"""The largest eigenvalue of the Hessian of the training loss, a hint at the learning rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bayeslora.models.layers import evaluating
from bayeslora.scoring import ChoiceBatch

_VECTORS = 12
"""Lanczos vectors that are kept; each is as long as there are trainable parameters."""


def largest_hessian_eigenvalue(
    model: nn.Module, batches: Callable[[], Iterable[ChoiceBatch]], tolerance: float = 1e-2
) -> float | None:
    """lambda_max of the Hessian of the mean NLL with respect to the trainable parameters, nats per squared unit.

    At the weights as they are, in eval mode: for a posterior, at its mean, without the KL. Source: arXiv 2602.04998,
    which relates the best learning rates of LoRA methods to this number, and the classical bound that gradient descent
    is stable below 2 / lambda_max.

    Args:
        model: With its adapter.
        batches: The items, with labels, on the model's device, each time anew.
        tolerance: Relative.

    Returns:
        None where the iteration did not converge.

    Raises:
        ValueError: There are no items, or fewer than two numbers are trained.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def losses() -> Iterable[Tensor]:
        count = sum(batch.batch_size for batch in batches())
        if not count:
            raise ValueError("the Hessian of no items is not defined; give at least one.")
        for batch in batches():
            logits = batch.choice_logits(model)
            yield nn.functional.cross_entropy(logits, batch["labels"], reduction="sum") / count

    # The fused attention kernels have no second derivative.
    with evaluating(model), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        return largest_eigenvalue(losses, parameters, tolerance)


def largest_eigenvalue(
    losses: Callable[[], Iterable[Tensor]], parameters: list[nn.Parameter], tolerance: float = 1e-2
) -> float | None:
    """The largest (not in absolute value) eigenvalue of the Hessian of the sum of `losses`, by Lanczos.

    Args:
        losses: Scalars, computed anew with each call; one is in memory at a time.
        parameters: What to differentiate by.
        tolerance: Relative.

    Returns:
        None where the iteration did not converge.

    Raises:
        ValueError: There are fewer than two numbers.
    """
    size = sum(parameter.numel() for parameter in parameters)
    if size < 2:
        raise ValueError(f"expected at least 2 trainable numbers, got {size}.")

    def product(vector: numpy.ndarray) -> numpy.ndarray:
        return _hessian_product(losses, parameters, vector.ravel())

    operator: Any = LinearOperator((size, size), matvec=product, dtype=numpy.float32)
    start = numpy.random.default_rng(0).standard_normal(size).astype(numpy.float32)
    options: dict[str, Any] = {"ncv": min(size, _VECTORS), "maxiter": 50, "tol": tolerance}
    try:
        found = eigsh(operator, 1, which="LA", v0=start, return_eigenvectors=False, **options)
    except ArpackNoConvergence:
        return None
    return float(found[0])


def _hessian_product(
    losses: Callable[[], Iterable[Tensor]], parameters: list[nn.Parameter], vector: numpy.ndarray
) -> numpy.ndarray:
    """H v `[numbers]`."""
    flat = torch.from_numpy(numpy.ascontiguousarray(vector))
    pieces = [
        piece.view_as(parameter).to(parameter)
        for piece, parameter in zip(flat.split([p.numel() for p in parameters]), parameters, strict=True)
    ]
    total = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters]
    for loss in losses():
        first = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
        slope = sum((gradient * piece).sum() for gradient, piece in zip(first, pieces, strict=True))
        second = torch.autograd.grad(slope, parameters, materialize_grads=True)
        for place, value in zip(total, second, strict=True):
            place += value
    return torch.cat([value.flatten().cpu() for value in total]).numpy()

"""One step of torch's AdamW (arXiv 1711.05101), with its state and the weights of 16-bit parameters in float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw


def adamw_update(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    state: dict[Any, dict[str, Any]],
    group: Mapping[str, Any],
) -> None:
    """Update `parameters` with `gradients` as torch.optim.AdamW does, bit by bit where they have 32 bits.

    Args:
        parameters: The parameters.
        gradients: One for each, in its shape.
        state: State by parameter; entries "step", "exp_avg", "exp_avg_sq" are made where they are missing.
        group: Options: lr, betas, eps, weight_decay, fused.
    """
    if not parameters:
        return
    weights = [full_precision(parameter, state[parameter]) for parameter in parameters]
    for parameter, weight in zip(parameters, weights, strict=True):
        if "exp_avg" not in state[parameter]:
            device = parameter.device if group["fused"] else "cpu"
            state[parameter]["step"] = torch.zeros((), dtype=torch.float32, device=device)
            state[parameter]["exp_avg"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
            state[parameter]["exp_avg_sq"] = torch.zeros_like(weight, memory_format=torch.preserve_format)
    adamw(
        weights,
        [gradient.to(weight.dtype) for gradient, weight in zip(gradients, weights, strict=True)],
        [state[parameter]["exp_avg"] for parameter in parameters],
        [state[parameter]["exp_avg_sq"] for parameter in parameters],
        [],
        [state[parameter]["step"] for parameter in parameters],
        fused=group["fused"],
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )
    narrow = [index for index, parameter in enumerate(parameters) if parameter.dtype.itemsize < 4]
    if narrow:
        assign([parameters[index] for index in narrow], [weights[index] for index in narrow], state)


def full_precision(parameter: Tensor, state: dict[str, Any]) -> Tensor:
    """The weights of `parameter` in at least float32: itself, or the copy that `state` keeps under "float32".

    Where the parameter was changed by others since the copy was rounded to it, the parameter counts.
    """
    if parameter.dtype.itemsize >= 4:
        return parameter
    known, wide = state.get("float32"), parameter.detach().float()
    state["float32"] = wide if known is None else torch.where(known.to(parameter.dtype) == parameter, known, wide)
    return state["float32"]


def assign(parameters: Sequence[Tensor], weights: Sequence[Tensor], state: dict[Any, dict[str, Any]]) -> None:
    """Give each parameter its new weights, rounded to its own number type; the copies in `state` are not rounded."""
    for parameter, weight in zip(parameters, weights, strict=True):
        if parameter.dtype.itemsize < 4:
            state[parameter]["float32"] = weight.clone()
    torch._foreach_copy_(list(parameters), list(weights))

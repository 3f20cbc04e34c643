"""Weights in float32 for parameters of 16 bits, whose own numbers are too coarse for small updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


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

"""Several tensors of a factor side by side in one: an optimizer and a backward pass pay for each, whatever its size."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

VARIATIONAL = "variational"
"""Name of the tensor that holds the variational parameters of a factor."""


def pack(tensors: Mapping[str, Tensor]) -> Tensor:
    """All `tensors` as one column `[count, 1]`, flat and in the alphabetical order of their names."""
    return torch.cat([tensors[name].reshape(-1, 1) for name in sorted(tensors)])


def unpack(column: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The tensors `[..., *shape]` that lie in `column` `[..., count, 1]`, as views; `shapes` in alphabetical order."""
    pieces = column.squeeze(-1).split([shape.numel() for shape in shapes.values()], dim=-1)
    return {name: piece.unflatten(-1, shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}

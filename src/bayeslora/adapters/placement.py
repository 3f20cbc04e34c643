"""Where the adapters go: named shares of a model's layers, counted from the top, and the modules in them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers.pytorch_utils import Conv1D

from bayeslora.models.kinds import Placement as Placement
from bayeslora.models.kinds import Targets as Targets
from bayeslora.models.layers import inside_layers, outermost_layers

_PARTS: dict[str, int] = {"all": 1, "top_half": 2, "top_quarter": 4}


def adapted_layers(total: int, placement: Placement = "all", last_layers: int | None = None) -> list[int] | None:
    """Indices of the layers to adapt in a model of `total` layers; None for all of them.

    Args:
        total: Layers of the model.
        placement: "top_half" and "top_quarter" are rounded down, but at least one layer.
        last_layers: This many layers instead.

    Raises:
        ValueError: The placement is unknown, both are given, or `last_layers` exceeds the model's layers.
    """
    if placement not in _PARTS:
        raise ValueError(f"placement must be one of {sorted(_PARTS)}, got {placement!r}.")
    if last_layers is None:
        return None if placement == "all" else list(range(total - max(1, total // _PARTS[placement]), total))
    if placement != "all":
        raise ValueError(
            f"placement ({placement!r}) and last_layers ({last_layers}) both say which layers to adapt; give one of "
            "them."
        )
    if not 0 < last_layers <= total:
        raise ValueError(f"last_layers must lie between 1 and the model's {total} layers, got {last_layers}.")
    return list(range(total - last_layers, total))


def linear_names(model: nn.Module, chosen: Sequence[int] | None = None) -> list[str]:
    """Full names of the linear maps inside of the `chosen` transformer layers (None: of all of them).

    PEFT has "all-linear" too, but not together with a choice of layers.

    Raises:
        ValueError: There are none.
    """
    inside = inside_layers(model, chosen)
    named = ((name, module) for name, module in model.named_modules() if id(module) in inside)
    names = [name for name, module in named if isinstance(module, nn.Linear | Conv1D)]
    if not names:
        total = len(outermost_layers(model))
        raise ValueError(
            f"target_modules 'all-linear' found no linear maps in the {total} transformer layers of a "
            f"{type(model).__name__}; give the names of the modules to adapt."
        )
    return names

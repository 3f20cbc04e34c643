"""The head of a classifier: its modules, its weights that no checkpoint holds, and the type it is computed in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora.system.log import logger

_NOTE = "bayeslora_new_weights"
"""A plain attribute of the base model; without it, as of a model loaded otherwise, nothing is known to be new."""


def head_modules(model: Any) -> list[str]:
    """Names of the modules of a classifier that are not its backbone, and of the backbone's pooler.

    Many encoders are published without the pooler, which belongs to the head there.
    """
    backbone = model.base_model
    around = [name for name, child in model.named_children() if child is not backbone]
    pooled = backbone is not model and isinstance(getattr(backbone, "pooler", None), nn.Module)
    return [*around, f"{model.base_model_prefix}.pooler"] if pooled else around


def held_by(weight: str, modules: Iterable[str]) -> bool:
    """Whether a weight of this name is in one of the modules."""
    return any(weight.startswith(f"{name}.") for name in modules)


def note_new_weights(model: nn.Module, weights: Mapping[str, str]) -> None:
    """Note which weights of `model` were drawn when it was loaded, by name, and why."""
    setattr(model, _NOTE, dict(weights))


def new_weights(model: nn.Module) -> dict[str, str]:
    """Names of the weights that were drawn when `model` was loaded, and why."""
    return dict(getattr(model, _NOTE, {}))


def new_modules(model: nn.Module) -> list[str]:
    """The smallest modules of the head, as `head_modules` names them, that hold all new weights."""
    return list(new_head(model))


def new_head(model: nn.Module) -> dict[str, str]:
    """`new_modules`, and why each is new."""
    new = new_weights(model)
    names = head_modules(model) if new else []
    why = {name: next((new[weight] for weight in new if held_by(weight, [name])), None) for name in names}
    return {name: reason for name, reason in why.items() if reason is not None}


def saved_modules(model: nn.Module, asked: Iterable[str] | None) -> list[str] | None:
    """PEFT's `modules_to_save` for `model`: those asked for, and all that hold new weights. Says which are new."""
    # On the meta device nothing is trained: a plan says it in its own words.
    planned = any(parameter.is_meta for parameter in model.parameters())
    for name, reason in new_head(model).items() if not planned else ():
        logger.info("%s is new (%s); it is trained and saved with the adapter", name, reason)
    return list(dict.fromkeys([*(asked or []), *new_modules(model)])) or None


def compute_in_float32(model: nn.Module, modules: Iterable[str]) -> None:
    """Keep the modules of these names in float32 on top of layers of 16 bits.

    A step of a usual learning rate is below the spacing of bfloat16 numbers, so most of such weights never move.
    """
    for name in modules:
        for part in model.get_submodule(name).modules():
            own = list(part.parameters(recurse=False))
            if any(parameter.dtype in (torch.bfloat16, torch.float16) for parameter in own):
                for parameter in own:
                    parameter.data = parameter.data.float()
                part.register_forward_pre_hook(_to_own_type)


def _to_own_type(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Forward pre-hook: floating-point inputs in the type of the module's weights."""
    dtype = next(module.parameters(recurse=False)).dtype
    return tuple(
        value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value for value in args
    )

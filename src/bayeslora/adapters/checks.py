"""Targets that are no linear layers, or experts and routers of a mixture: what is there instead, and what to name."""

from __future__ import annotations

import re
from collections.abc import Iterator

from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn
from transformers.pytorch_utils import Conv1D

_BEFORE_FUSION = ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
"""What the experts' linear layers are called in checkpoints, and in many recipes' target_modules."""

_FUSED = (
    "the experts are one parameter of three dimensions, and S draws of their factors would be S copies of all of it"
)
_REMEDY = (
    "Adapt the layers that see every token: target_modules=['q_proj', 'v_proj'] (or k_proj, o_proj, lm_head). Where "
    "some layers have an ordinary feed-forward part, name those by layers_to_transform or a regular expression."
)


_ROUTED = "an expert sees the tokens routed to it, in which those of several draws cannot be told apart"


def check_targets(model: nn.Module, config: LoraConfig) -> None:
    """Refuse adapters on routed experts, on routers, and on bare parameters.

    Without this, targets such as `down_proj` would adapt what few linear layers of that name a mixture has and leave
    its experts out without a word. "all-linear" means the linear layers, as it says.

    Raises:
        ValueError: The targets of `config` hit fused experts, single experts, a router or a parameter.
    """
    if config.target_modules is None:
        return  # PEFT's choice for the model, which is attention layers where there is one.
    for key, reason, remedy in _parts(model):
        if check_target_module_exists(config, key):
            raise ValueError(
                f"{type(config).__name__} cannot adapt {key!r}, which target_modules={config.target_modules!r} asks "
                f"for: {reason}. {remedy or _linear_layers(model)}"
            )


def _parts(model: nn.Module) -> Iterator[tuple[str, str, str | None]]:
    """Names that targets could hit, what is there, and the remedy where it is not that of the model."""
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        expert = "expert" in f"{name}.{type(module).__name__}".lower()
        if expert and any(parameter.dim() == 3 for parameter in own.values()):
            for leaf in ("", *own, *_BEFORE_FUSION):
                yield f"{name}.{leaf}".strip("."), _FUSED, _REMEDY
        elif type(module).__name__.endswith("Router") and "weight" in own:
            yield name, "it is a router, which is no linear layer in this model", _REMEDY
        elif re.search(r"(^|\.)experts\.\d+\.", name) and isinstance(module, nn.Linear):
            yield name, _ROUTED, _REMEDY
        else:
            for leaf, parameter in own.items():
                if parameter.dim() > 1 and leaf != "weight":
                    yield f"{name}.{leaf}".strip("."), "it is a bare parameter, no linear layer", None


def _linear_layers(model: nn.Module) -> str:
    """A remedy: what the linear layers of `model` are called."""
    named = model.named_modules()
    linear = sorted({name.rpartition(".")[2] for name, module in named if isinstance(module, nn.Linear | Conv1D)})
    return f"The linear layers of this model are called {', '.join(linear)}." if linear else ""

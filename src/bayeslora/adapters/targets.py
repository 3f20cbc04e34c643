"""Which modules to adapt where nobody says so: PEFT's choice for the model, or query and value by their usual names."""

from __future__ import annotations

from typing import Any

from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_TARGETS
from torch import nn
from transformers.pytorch_utils import Conv1D

from bayeslora.models.modalities import beside_text

_QUERY_AND_VALUE = (
    ("q_proj", "v_proj"),
    ("query", "value"),
    ("query_proj", "value_proj"),
    ("q_lin", "v_lin"),
    ("q", "v"),
    ("Wqkv",),
    ("qkv_proj",),
    ("query_key_value",),
    ("in_proj_qkv",),
    ("c_attn",),
)
"""What models call them, apart or in one."""


def default_targets(model: nn.Module) -> list[str] | None:
    """Names of the query and value maps of a model that PEFT has no default targets for, which it has by `model_type`.

    None where PEFT has some, or where the model has no linear maps of such names.
    """
    if getattr(getattr(model, "config", None), "model_type", None) in PEFT_TARGETS:
        return None
    unread: Any = tuple(f"{name}." for name in beside_text(model))
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not name.startswith(unread)
    }
    return next((list(names) for names in _QUERY_AND_VALUE if linear.issuperset(names)), None)

"""What the start of an adapter (PEFT's `init_lora_weights`) does to its base model, and whether a load repeats it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel
from torch import nn

__all__ = ["changes_base", "check_start", "open_adapter"]

_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")

_NOT_AGAIN = {
    "pissa_niter": "takes a random decomposition out of the base model, which PEFT draws anew at each load",
    "lora_ga": "takes a part out of the base model that depends on gradients, which PEFT leaves in at a load",
    "corda": "takes a part out of the base model that depends on data, which PEFT cannot do again at a load",
}
"""Starts whose adapters get another base model at a load: the logits are off without a word, or the load fails."""


def changes_base(config: LoraConfig) -> bool:
    """Whether the start of the adapter changed the base weights, so that the adapter alone is not the model."""
    start = config.init_lora_weights
    return isinstance(start, str) and start.startswith(_CHANGE_THE_BASE)


def check_start(config: Any) -> None:
    """Refuse adapters whose start a load does not repeat.

    Raises:
        ValueError: `config` has such an `init_lora_weights`.
    """
    start = getattr(config, "init_lora_weights", None)
    reason = next((_NOT_AGAIN[name] for name in _NOT_AGAIN if str(start).startswith(name)), None)
    if reason is not None:
        raise ValueError(
            f"init_lora_weights={start!r} {reason}, so that a saved adapter is not the trained one. Begin with "
            "init_lora_weights='pissa' or 'olora', or convert the adapter to plain LoRA while its first state is at "
            "hand (PEFT: save_pretrained with path_initial_model_for_weight_conversion)."
        )


def open_adapter(model: nn.Module, adapter: str | Path, *, is_trainable: bool = False) -> PeftModel:
    """`PeftModel.from_pretrained`, but for adapters whose start a load does not repeat.

    Raises:
        ValueError: As `check_start`.
    """
    config = PeftConfig.from_pretrained(str(adapter))
    check_start(config)
    return PeftModel.from_pretrained(model, str(adapter), is_trainable=is_trainable, config=config)

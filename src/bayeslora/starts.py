"""What the start of an adapter (PEFT's `init_lora_weights`) does to its base model, and whether a load repeats it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict
from torch import nn

from bayeslora.adapters import CONFIG_FILE, REMEDY, read_adapter, require_tensors

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


def open_adapter(model: nn.Module, folder: str | Path, config: PeftConfig | None = None, **options: Any) -> PeftModel:
    """PEFT's `from_pretrained` for a LoRA adapter, or one of this package, that is whole and whose start is repeated.

    Args:
        model: The base model.
        folder: With adapter_config.json and adapter_model.safetensors.
        config: In place of the one in the folder. Modules that it saves beyond those are new.
        **options: Of `PeftModel.from_pretrained`.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged; a value of the config is out of its range; a tensor that config and model imply
            is missing, of another shape, or not finite; the adapter belongs to another base model; or
            as `check_start`.
    """
    stored, tensors = read_adapter(folder)
    check_start(stored)
    try:
        opened = PeftModel.from_pretrained(model, str(folder), config=config or stored, **options)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    # PEFT trips over what does not fit in any of its steps.
    except (RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        cause = f"it lacks {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
        raise ValueError(
            f"the adapter in {folder} does not fit its {CONFIG_FILE} or the base model ({cause}); {REMEDY}"
        ) from error
    except re.error as error:
        path = Path(folder) / CONFIG_FILE
        raise ValueError(f"{path}: {error.pattern!r} is no regular expression ({error}).") from error
    new = set(opened.active_peft_config.modules_to_save or ()) - set(stored.modules_to_save or ())
    require_tensors(get_peft_model_state_dict(opened, save_embedding_layers=False), tensors, folder, new)
    return opened

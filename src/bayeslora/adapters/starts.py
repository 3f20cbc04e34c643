"""What the start of an adapter (PEFT's `init_lora_weights`) does to its base model, and whether a load repeats it."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from torch import Tensor, nn

from bayeslora.adapters.files import CONFIG_FILE, REMEDY, TENSORS_FILE, read_adapter, require_tensors
from bayeslora.models.heads import new_modules, saved_modules

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

    An adapter of a causal language model goes on a classifier's layers too.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged; a value of the config is out of its range; a tensor that config and model imply
            is missing, of another shape, or not finite; the adapter belongs to another base model; or
            as `check_start`.
    """
    stored, tensors = read_adapter(folder)
    check_start(stored)
    if config is None and stored.task_type == "CAUSAL_LM" and not hasattr(model, "prepare_inputs_for_generation"):
        stored.task_type = None
    try:
        opened = PeftModel.from_pretrained(model, str(folder), config=config or stored, **options)
    # PEFT trips over what does not fit in any of its steps.
    except (ValueError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        cause = f"it lacks {error}" if isinstance(error, KeyError) else f"{kind}{error}"
        raise ValueError(
            f"the adapter in {folder} ({TENSORS_FILE}) does not fit its {CONFIG_FILE} or the base model ({cause}); "
            f"{REMEDY}"
        ) from error
    except re.error as error:
        path = Path(folder) / CONFIG_FILE
        raise ValueError(f"{path}: {error.pattern!r} is no regular expression ({error}).") from error
    new = set(opened.active_peft_config.modules_to_save or ()) - set(stored.modules_to_save or ())
    require_tensors(get_peft_model_state_dict(opened, save_embedding_layers=False), tensors, folder, new)
    return opened


def continue_adapter(model: nn.Module, folder: str | Path, task_type: str) -> PeftModel:
    """The adapter on `model`, to be trained further; what the head has beyond it is new.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: As `open_adapter`.
    """
    stored, tensors = read_adapter(folder)
    check_start(stored)
    config = copy.deepcopy(stored)
    config.task_type, config.inference_mode = task_type, False
    config.modules_to_save = saved_modules(model, stored.modules_to_save)
    whole = all(any(f".{part}." in name for name in tensors) for part in new_modules(model))
    if whole and (task_type != "SEQ_CLS" or stored.task_type == task_type):
        return open_adapter(model, folder, config=config, is_trainable=True)
    continued: Any = get_peft_model(model, config)
    expected = get_peft_model_state_dict(continued, save_embedding_layers=False)
    require_tensors(expected, tensors, folder, _new_parts(continued, stored))
    set_peft_model_state_dict(continued, with_new(continued, tensors, stored))
    return continued


def with_new(
    model: PeftModel, weights: Mapping[str, Tensor], stored: LoraConfig, adapter_name: str = "default"
) -> dict[str, Tensor]:
    """Weights of an adapter file, and those of `model` for modules that its config `stored` does not save.

    PEFT does not put an adapter on a model where a saved module is missing.
    """
    own = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    new = _new_parts(model, stored, adapter_name)
    return {name: value for name, value in own.items() if any(f".{part}." in name for part in new)} | dict(weights)


def _new_parts(model: PeftModel, stored: LoraConfig, adapter_name: str = "default") -> set[str]:
    config: Any = model.peft_config[adapter_name]
    return set(config.modules_to_save or ()) - set(stored.modules_to_save or ())

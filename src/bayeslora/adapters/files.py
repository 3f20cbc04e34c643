"""The files of an adapter: nothing is put on a model before its config and its tensors are known to be whole.

PEFT warns where tensors are missing and goes on with fresh ones, and takes any number for a rank or a scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import peft.mapping
from peft import LoraConfig, PeftConfig
from safetensors import safe_open
from torch import Tensor, nn

from bayeslora.models.heads import new_weights
from bayeslora.options.ranges import Positive, Share, Size, check_value
from bayeslora.posteriors.weights.packing import VARIATIONAL, pack
from bayeslora.system.reading import read_json, read_tensors

CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"

_Names = list[str] | str | None
_FIELDS: dict[str, Any] = {
    "peft_type": str,
    "r": Size,
    "lora_alpha": Positive,
    "lora_dropout": Share,
    "target_modules": _Names,
    "exclude_modules": _Names,
    "modules_to_save": list[str] | None,
    "layers_to_transform": list[int] | int | None,
    "layers_pattern": _Names,
    "rank_pattern": dict[str, Size] | None,
    "alpha_pattern": dict[str, Positive] | None,
    "bias": Literal["none", "all", "lora_only"],
    "fan_in_fan_out": bool,
    "use_rslora": bool,
    "use_dora": bool,
    "base_model_name_or_path": str | None,
    "task_type": str | None,
    "megatron_config": type(None),
}
"""What PEFT reads of a LoRA config without looking at it. It imports the module that a Megatron config names."""

REMEDY = "copy the adapter again from where it was written, load it on its own base model, or train again."


def read_adapter(folder: str | Path) -> tuple[Any, dict[str, Tensor]]:
    """The config and the tensors of an adapter's folder.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, a value of the config is out of its range, or a number is not finite.
    """
    return read_adapter_config(folder), read_tensors(tensors_file(folder))


def is_factor(key: str) -> bool:
    """Whether a tensor of this name in an adapter file is one of A or B."""
    return ".lora_A." in key or ".lora_B." in key


def tensors_file(folder: str | Path) -> Path:
    """The file with the tensors of an adapter's folder.

    Raises:
        FileNotFoundError: It is missing.
    """
    path = Path(folder) / TENSORS_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; adapters are read from safetensors, no pickles (.bin) are opened. "
            f"{REMEDY.capitalize()}"
        )
    return path


def read_adapter_config(folder: str | Path) -> Any:
    """The config of an adapter's folder, a `peft.LoraConfig`.

    Raises:
        FileNotFoundError: It is missing.
        ValueError: It is damaged, of another kind of adapter, or a value is out of its range.
    """
    path = Path(folder) / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"expected an adapter or a run in {folder}, but {path} does not exist; check the name.")
    content = read_json(path)
    kinds: dict[Any, type[PeftConfig]] = dict(peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING)
    kind = kinds.get(str(content.get("peft_type")))
    if kind is None or not issubclass(kind, LoraConfig):
        raise ValueError(
            f"{path}: peft_type must be LORA or a type that bayeslora knows, got {content.get('peft_type')!r}; "
            "adapters of other kinds are not read here."
        )
    for name, hint in _FIELDS.items():
        if name in content:
            check_value(content[name], hint, f"{path}: {name}")
    try:
        return PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from error


def require_tensors(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], folder: str | Path, new: set[str] | None = None
) -> None:
    """Whether the tensors of a file are those that its config and the base model imply.

    Args:
        expected: What PEFT would save of the model, by name.
        found: What is in the file.
        folder: Its folder, for the message.
        new: Modules whose tensors the file need not hold.

    Raises:
        ValueError: One is missing or has another shape.
    """
    path = Path(folder) / TENSORS_FILE
    found = _in_this_format(expected, found)
    missing = [name for name in expected if name not in found and not any(f".{part}." in name for part in new or ())]
    if missing:
        others = sorted(found.keys() - expected.keys())
        raise ValueError(
            f"{path} lacks {len(missing)} of the {len(expected)} tensors that {CONFIG_FILE} asks for, such as "
            f"{min(missing)}{f' (it has {others[0]} instead)' if others else ''}; {REMEDY}"
        )
    for name, tensor in expected.items():
        if name in found and found[name].shape != tensor.shape:
            raise ValueError(
                f"{path}: {name} must have the shape {list(tensor.shape)}, got {list(found[name].shape)}; {REMEDY}"
            )


def _in_this_format(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`found`, with what files of format version 1 hold one by one packed; PEFT's load does so by itself."""
    result = dict(found)
    for packed in expected.keys() - found.keys():
        prefix, _, name = packed.rpartition(".")
        parts = [key for key in found if key.rpartition(".")[0] == prefix and key not in expected]
        if name == VARIATIONAL and parts:
            result[packed] = pack({key: result.pop(key) for key in parts})
    return result


def require_supplied(model: nn.Module, adapters: Iterable[str | Path]) -> None:
    """Whether the new weights of the base model `model` all stand in one of the adapters (folders).

    Raises:
        ValueError: Some do not; the message names them.
    """
    missing = set(new_weights(model))
    for adapter in adapters if missing else ():
        with safe_open(tensors_file(adapter), "pt") as file:
            missing -= {key.removeprefix("base_model.model.") for key in file.keys()}  # noqa: SIM118
    if missing:
        raise ValueError(
            f"the base model's checkpoint does not hold {', '.join(sorted(missing))}, and neither does the adapter, so "
            "they would be drawn anew at each load. Train again: now all such weights are trained and saved with the "
            "adapter."
        )

"""`train.arguments`: which fields of transformers' TrainingArguments (or TRL's SFTConfig) it may name, their values.

The types are those of the fields; the ranges of their numbers, which transformers does not check, stand here.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from types import MappingProxyType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from transformers import TrainingArguments

from bayeslora.options.ranges import (
    AtLeastZero,
    Count,
    Epochs,
    Positive,
    Range,
    Rate,
    Seed,
    ShareBelowOne,
    Size,
    WeightDecay,
    check_value,
)
from bayeslora.options.registry import did_you_mean

_RANGES: dict[str, Any] = {
    "per_device_train_batch_size": Size,
    "per_device_eval_batch_size": Size,
    "gradient_accumulation_steps": Size,
    "num_train_epochs": Epochs,
    "max_steps": Annotated[int, Range(-1, 1e9)],
    "learning_rate": Rate,
    "warmup_steps": AtLeastZero,
    "weight_decay": WeightDecay,
    "adam_beta1": ShareBelowOne,
    "adam_beta2": ShareBelowOne,
    "adam_epsilon": Annotated[float, Range(0, 1)],
    "max_grad_norm": AtLeastZero,
    "label_smoothing_factor": ShareBelowOne,
    "neftune_noise_alpha": AtLeastZero | None,
    "torch_empty_cache_steps": Count | None,
    "logging_steps": Positive,
    "save_steps": Positive,
    "eval_steps": Positive | None,
    "eval_delay": AtLeastZero,
    "eval_accumulation_steps": Count | None,
    "save_total_limit": Count | None,
    "seed": Seed,
    "data_seed": Seed | None,
    "dataloader_num_workers": Annotated[int, Range(0, 1024)],
    "dataloader_prefetch_factor": Size | None,
    "ddp_bucket_cap_mb": Size | None,
    "ddp_timeout": Count,
    "local_rank": Annotated[int, Range(-1, 2**16)],
    "router_aux_loss_coef": AtLeastZero | None,
    "dataset_num_proc": Annotated[int, Range(1, 1024)] | None,
    "max_length": Count | None,
    "pad_to_multiple_of": Size | Literal["auto"] | None,
}

_ELSEWHERE = {
    "output_dir": "checkpoints belong to the run folder (--output_dir)",
    "resume_from_checkpoint": "a trainer does not read it; go on with a run by --resume true",
}


def check_arguments(
    arguments: Mapping[str, Any],
    name: str = "train.arguments",
    *,
    texts: bool = False,
    instead: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Refuse what a trainer would not know, would misread or would fail with only once it runs.

    Args:
        arguments: Values by field.
        name: Where they stand in a config file, for the message.
        texts: Whether they are for texts, so that the fields of TRL's SFTConfig count too.
        instead: Fields that each run of a procedure has a value of its own for, and the options that these come from.

    Raises:
        ImportError: `texts`, and TRL is not installed.
        ValueError: There is no such field, it belongs elsewhere, or its value is of another type or out of its range.
    """
    if not arguments:
        return
    kind = _text_arguments() if texts else TrainingArguments
    hints = _hints(kind)
    for field, value in arguments.items():
        if field in instead:
            raise ValueError(
                f"{name}.{field} would win over {instead[field]} in every run; leave it out, and set {instead[field]}."
            )
        if field in _ELSEWHERE:
            raise ValueError(f"{name}.{field} must be left out: {_ELSEWHERE[field]}.")
        if field not in hints:
            raise ValueError(
                f"{name}.{field} is no field of {kind.__module__.partition('.')[0]}.{kind.__name__}; use one that is."
                f"{did_you_mean(field, hints)}"
            )
        check_value(value, hints[field], f"{name}.{field}")


def _text_arguments() -> type:
    from bayeslora.training.sft import SFTConfig

    kind: type = SFTConfig
    return kind


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """What each argument of TrainingArguments, or of a class derived from it, may be."""
    hints = get_type_hints(kind)
    return {each.name: _RANGES.get(each.name) or _plain(hints[each.name]) for each in fields(kind) if each.init}


def _plain(hint: Any) -> Any:
    """An annotation in terms of plain data: of an enumeration the values, which are all that its texts may be."""
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    named = [part for part in parts if isinstance(part, type) and issubclass(part, enum.Enum)]
    if not named:
        return hint
    values: Any = Literal[tuple(member.value for kind in named for member in kind)]
    return Union[(values, *(part for part in parts if part not in (*named, str)))]

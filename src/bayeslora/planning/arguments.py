"""What `train.arguments` say in the place of a run's own options, which they win over."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bayeslora.runs.config import RunConfig, TrainConfig

_FIELDS = {
    "batch_size": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "epochs": "num_train_epochs",
    "max_steps": "max_steps",
}
"""Fields of TrainingArguments by the options of `train` that a plan reads."""


def as_trained(run: RunConfig) -> RunConfig:
    """The run with the options that its training has."""
    arguments = run.train.arguments
    said: dict[str, Any] = {name: arguments[field] for name, field in _FIELDS.items() if field in arguments}
    if said.get("max_steps", 1) <= 0:  # As transformers says that the epochs count.
        said["max_steps"] = None
    checkpointing = run.model.gradient_checkpointing or bool(arguments.get("gradient_checkpointing"))
    model = replace(run.model, gradient_checkpointing=checkpointing)
    return replace(run, model=model, train=replace(run.train, **said))


def option_name(name: str, train: TrainConfig) -> str:
    """Where a config sets an option of `train`: itself, or the field of `train.arguments` that wins over it."""
    field = _FIELDS[name]
    return f"train.arguments.{field}" if field in train.arguments else f"train.{name}"

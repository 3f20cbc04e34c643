"""The trainer of a run, as the run's config says, and the record of its training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import TrainerCallback, TrainingArguments

from bayeslora.methods import Method
from bayeslora.runs.config import RunConfig
from bayeslora.runs.epochs import EPOCH_FIELDS, EpochTrainer
from bayeslora.runs.prediction import predict_items
from bayeslora.scoring import Scoring
from bayeslora.scoring.trunk_cache import TrunkCache
from bayeslora.system.processes import all_reduce_max, world_size
from bayeslora.tasks import Splits
from bayeslora.training.trainer import BayesianLoraTrainer


def planned_steps(arguments: TrainingArguments, rows: int) -> int:
    """Optimizer steps of a training on so many rows."""
    if arguments.max_steps > 0:
        return arguments.max_steps
    per_step = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * world_size()
    return max(1, math.ceil(arguments.num_train_epochs * math.ceil(rows / per_step)))


def suited(arguments: TrainingArguments, rows: int) -> int:
    """`planned_steps`; what a training as short as that would not reach is changed in `arguments`."""
    steps = planned_steps(arguments, rows)
    arguments.logging_steps = min(arguments.logging_steps, steps)
    if steps == 1:
        # A warm-up begins at a learning rate of 0: the only step would change nothing.
        arguments.warmup_steps = 0
    return steps


def trainer_fields(
    config: RunConfig, output: Path, model: PeftModel, kind: type[TrainingArguments] = TrainingArguments, **own: Any
) -> dict[str, Any]:
    """What a run's config says about the fields of a trainer, with arguments of that kind; `own` are of all runs."""
    options = config.train
    fields = _arguments(config, output, model) | own | config.method.training_arguments() | options.arguments
    arguments = kind(**fields)
    # One process drives one device: DataParallel's replicas would have no parameters to draw from.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return {
        "model": model,
        "args": arguments,
        "optimizer": options.optimizer,
        "optimizer_options": options.optimizer_options,
        "prior_std": options.prior_std,
    }


def _arguments(config: RunConfig, output: Path, model: PeftModel) -> dict[str, Any]:
    """What a run's config says about the fields of TrainingArguments, its `train.arguments` left out."""
    options = config.train
    return {
        "output_dir": str(output / "checkpoints"),
        "num_train_epochs": options.epochs,
        "max_steps": options.max_steps or -1,
        "per_device_train_batch_size": options.batch_size,
        "gradient_accumulation_steps": options.gradient_accumulation_steps,
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": options.lr_scheduler,
        "warmup_steps": options.warmup,
        "weight_decay": options.weight_decay,
        "max_grad_norm": options.max_grad_norm,
        "logging_steps": options.logging_steps,
        "save_strategy": "epoch" if options.save_steps is None else "steps",
        "save_steps": options.save_steps or 500,
        "save_total_limit": 2,
        **(EPOCH_FIELDS if options.choose_epoch else {}),
        "report_to": options.report_to,
        "seed": config.seed,
        "use_cpu": next(model.parameters()).device.type == "cpu",
        # All parameters have a gradient in each step, those that only the KL reads too; a search along the graph of
        # the model's output would not find these, and DDP would fail on them.
        "ddp_find_unused_parameters": False,
        # Items are not columns of tensors: the scoring reads them whole.
        "remove_unused_columns": False,
    }


def item_trainer(
    config: RunConfig,
    output: Path,
    model: PeftModel,
    scoring: Scoring,
    splits: Splits,
    trunk_cache: TrunkCache | None,
) -> BayesianLoraTrainer:
    """What trains a run on items."""
    fields = trainer_fields(config, output, model)
    if config.model.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    dataset, arguments = scoring.dataset(splits.train, config.seed), fields["args"]
    steps = suited(arguments, len(dataset))
    own = config.method.trainer_options(arguments.learning_rate, steps, len(dataset))
    callbacks = [*own.pop("callbacks", ()), *([dataset] if isinstance(dataset, TrainerCallback) else ())]
    fields |= {
        "callbacks": callbacks,
        "train_dataset": dataset,
        "data_collator": scoring,
        "trunk_cache": trunk_cache,
        "label_smoothing": config.train.label_smoothing,
        **own,
    }
    if not config.train.choose_epoch:
        return BayesianLoraTrainer(**fields)

    # A posterior that is fitted after training is not there yet: until then the method predicts with the mean.
    samples = None if type(config.method).fit_posterior is Method.fit_posterior else 0
    cached: Any = {"trunk_cache": trunk_cache, "num_samples": samples, "progress": False}

    def dev_nll() -> float:
        found = predict_items(config, model, scoring, splits.dev, **cached)
        return float(found.metrics()["nll"])

    return EpochTrainer(**fields, eval_dataset=splits.dev, dev_nll=dev_nll)


def training_metrics(
    config: RunConfig, examples: int, seconds: float, peak_memory_bytes: int | None, parameters: int
) -> dict[str, Any]:
    """What metrics.json says of any training; of several processes the longest time and the largest memory."""
    return {
        "method": config.method.name,
        "task": config.task.name,
        "scoring": config.task.scoring,
        "model": config.model.name,
        "seed": config.seed,
        "train_examples": examples,
        "train_seconds": round(all_reduce_max(seconds) or 0.0, 2),
        "peak_memory_bytes": all_reduce_max(peak_memory_bytes),
        "trainable_parameters": parameters,
    }

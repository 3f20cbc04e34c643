"""Training a run on texts."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, set_seed

from bayeslora.methods import Method, TrainingResult
from bayeslora.runs.beginning import check_beginning, check_config, check_length, note_beginning
from bayeslora.runs.config import RunConfig
from bayeslora.runs.items import describe_splits
from bayeslora.runs.language_modelling.evaluation import predict_texts
from bayeslora.runs.language_modelling.quiet import quiet_datasets
from bayeslora.runs.language_modelling.texts import TextRow, text_dataset, text_splits
from bayeslora.runs.loading import load_model, merge_resolved
from bayeslora.runs.run import Run
from bayeslora.runs.trainer import planned_steps, suited, training_fields
from bayeslora.runs.training import training_metrics
from bayeslora.runs.writing import write_run
from bayeslora.scoring import ChoiceBatch
from bayeslora.system.folders import only_writer
from bayeslora.system.memory import peak_memory
from bayeslora.training.progress import training_shown
from bayeslora.training.sft import BayesianSFTTrainer, SFTConfig

__all__ = ["train_texts"]

logger = logging.getLogger("bayeslora")


def train_texts(
    config: RunConfig,
    output_dir: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    evaluate_dev: bool = True,
) -> Run:
    """What `bayeslora.runs.train` does for task.scoring text: the same run folder, scored in tokens.

    Raises:
        ValueError: The method or an option is for items with choices, or there are no training texts.
        FileExistsError, RuntimeError, NonFiniteLossError: As `bayeslora.runs.train`.
    """
    _check(config)
    output = Path(output_dir)
    with only_writer(output):
        return _train(config, output, resume, overwrite, evaluate_dev)


def _train(config: RunConfig, output: Path, resume: bool, overwrite: bool, evaluate_dev: bool) -> Run:
    splits = text_splits(config.task)
    if not splits.train:
        raise ValueError(f"task {config.task.name!r} has no training texts.")
    check_config(config, len(splits.dev))
    check_beginning(config, output, splits.train, resume=resume, overwrite=overwrite)
    set_seed(config.seed)
    base, tokenizer, scoring = load_model(merge_resolved(config.model, output), config.task)
    set_seed(config.seed)
    model = config.method.adapt(base, "causal_lm")
    trainer = _trainer(config, output, model, tokenizer, splits.train, scoring.max_length)
    rows: Any = trainer.train_dataset
    tokens = trainer.num_observations
    if resume:
        check_length(output, planned_steps(trainer.args, len(rows)))
    note_beginning(config, output, splits.train, resume=resume)
    logger.info("%s", describe_splits(config.task.name, splits, "texts"))
    logger.info("target tokens of the training texts: %s", f"{tokens:,}")
    started = time.perf_counter()
    with peak_memory(trainer.args.device) as memory:
        if trainer.args.num_train_epochs or trainer.args.max_steps > 0:
            with training_shown(trainer, "token"):
                trainer.train(resume_from_checkpoint=resume)
        optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        state = config.method.fit_posterior(model, TrainingResult(_no_items, tokens, optimizer, None, config.seed))
    seconds = time.perf_counter() - started
    metrics = training_metrics(config, trainer, len(splits.train), seconds, memory.peak)
    metrics |= {"train_rows": len(rows), "train_tokens": tokens}
    run = Run(config=config, model=model, scoring=scoring, metrics=metrics, state=state)
    if splits.dev and evaluate_dev:
        metrics |= predict_texts(run, splits.dev).metrics(run) | {"split": "dev"}
    write_run(run, output)
    return run


def _check(config: RunConfig) -> None:
    method: Method = config.method
    if method.needs_items or method.train_samples > 1:
        why = "reads items with choices" if method.needs_items else "takes several draws in a training forward"
        raise ValueError(
            f"the method {method.name!r} {why}, which task.scoring text does not support; use another method "
            "(BayesianLora, Lora, Blob, ...), with train_samples 1, or a task with choices."
        )
    if config.temperature_scaling:
        raise ValueError("temperature_scaling is about choices; leave it out with task.scoring text.")


def _no_items() -> Iterable[ChoiceBatch]:
    raise ValueError("this run has texts and no items with choices.")


def _trainer(
    config: RunConfig,
    output: Path,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[TextRow],
    max_length: int,
) -> BayesianSFTTrainer:
    options = config.train
    fields = training_fields(config, output, model) | {
        "remove_unused_columns": True,
        "max_length": max_length,
        "bf16": False,
        "gradient_checkpointing": config.model.gradient_checkpointing,
        "label_smoothing_factor": options.label_smoothing,
    }
    arguments = SFTConfig(**fields | config.method.training_arguments() | options.arguments)
    # One process drives one device: DataParallel's replicas would have no parameters to draw from.
    arguments._n_gpu = min(1, arguments.n_gpu)
    with quiet_datasets():
        trainer = BayesianSFTTrainer(
            model=model,
            args=arguments,
            train_dataset=text_dataset(rows, chat=tokenizer.chat_template is not None and not config.task.raw),
            processing_class=tokenizer,
            optimizer=options.optimizer,
            optimizer_options=options.optimizer_options,
            prior_std=options.prior_std,
        )
    data: Any = trainer.train_dataset
    steps = suited(arguments, len(data))
    # N and the number of steps are known only now that TRL has prepared the texts; both are read first by train().
    later = config.method.trainer_options(arguments.learning_rate, steps, trainer.num_observations)
    for callback in later.pop("callbacks", ()):
        trainer.add_callback(callback)
    for name, value in later.items():
        assert hasattr(trainer, name), name
        setattr(trainer, name, value)
    return trainer

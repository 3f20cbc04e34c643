"""Training a run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import Trainer

from bayeslora.methods import TrainingResult, trainable_parameters
from bayeslora.prediction.temperature import fit_temperature
from bayeslora.runs.adaptive import can_stop, is_adaptive
from bayeslora.runs.beginning import check_beginning, check_config, check_length, note_beginning
from bayeslora.runs.building import build_model, open_trunk_cache
from bayeslora.runs.config import RunConfig
from bayeslora.runs.cross_fitting import CrossFitting, reading_of
from bayeslora.runs.distillation.lesson import Lesson, check_place, learn_from
from bayeslora.runs.epochs import epoch_record
from bayeslora.runs.heads import fixed_choices, train_head
from bayeslora.runs.items import describe_splits, task_items, warn_of_unseen_classes, with_classes
from bayeslora.runs.length_power import with_length_power
from bayeslora.runs.loading import with_chat_template
from bayeslora.runs.model_card import CardFacts
from bayeslora.runs.run import Run
from bayeslora.runs.trainer import item_trainer, planned_steps
from bayeslora.runs.writing import write_run
from bayeslora.scoring import ChoiceBatch, Scoring
from bayeslora.scoring.trunk_cache import TrunkCache
from bayeslora.system.folders import only_writer
from bayeslora.system.memory import peak_memory
from bayeslora.system.processes import all_reduce_max
from bayeslora.tasks import Splits
from bayeslora.training.progress import training_shown
from bayeslora.training.trainer import BayesianLoraTrainer

__all__ = ["Trained", "train", "training_metrics"]

logger = logging.getLogger("bayeslora")


@dataclass(kw_only=True)
class Trained(Run):
    """A run that was trained in this process."""

    splits: Splits


def train(
    config: RunConfig,
    output_dir: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    evaluate_dev: bool = True,
    trunk_cache: TrunkCache | None = None,
    prepare: Callable[[PeftModel], None] | None = None,
    lesson: Lesson | None = None,
    splits: Splits | None = None,
    also: Callable[[Trained, Path], None] | None = None,
) -> Trained:
    """Train an adapter and write it to `output_dir`; on texts: `bayeslora.runs.language_modelling.train_texts`.

    Writes `adapter/`, `config.yaml`, `metrics.json` (on the dev split), and where the method knows more than its
    adapter `posterior.safetensors`. With 0 epochs nothing is trained: for methods that go on from `init_from`.
    Several processes (torchrun, accelerate launch) share the batches of a step and of the evaluation; the main one
    writes.

    Args:
        config: The run.
        output_dir: The run folder.
        resume: Go on from the newest complete checkpoint in `output_dir/checkpoints`, if there is one. The config must
            be that of the checkpoint, but for its length, what is logged and stored, and how it predicts.
        overwrite: Replace a run that is in `output_dir`. It stays as it is until this one has ended well.
        evaluate_dev: Whether to predict the dev split at the end.
        trunk_cache: That of another run on the same base model and layers, to read and add to.
        prepare: Changes the adapted model before it is trained, such as where a procedure freezes a part.
        lesson: Items to train on in the place of the task's own; default: those, or where the config names a teacher
            (`distill.teacher`) what that says of them.
        splits: The items; default: those of the config's task.
        also: Writes further parts of the finished run, into the folder that it is given.

    Raises:
        FileExistsError: There is a run in `output_dir`, and neither `resume` nor `overwrite`.
        RuntimeError: Another process writes to `output_dir`.
        ValueError: The config is wrong, or not that of the run to resume.
        NonFiniteLossError: The loss became NaN or infinite; checkpoints and an earlier run are left as they were.
    """
    if config.task.scoring == "text":
        raise ValueError("task.scoring text has no items: train with bayeslora.runs.language_modelling.train_texts.")
    if not config.method.adapts:
        chosen: Any = {"resume": resume, "overwrite": overwrite, "evaluate_dev": evaluate_dev}
        return train_head(config, output_dir, **chosen)  # type: ignore[return-value]
    output = Path(output_dir)
    if lesson is None and config.distill.teacher is not None:
        check_place(config.distill.teacher, output, resume=resume, overwrite=overwrite)
        lesson = learn_from(config, output)
    with only_writer(output):
        if splits is None:
            splits = task_items(config.task) if lesson is None else lesson.splits
        return _train(config, output, splits, resume, overwrite, evaluate_dev, trunk_cache, prepare, lesson, also)


def _train(
    config: RunConfig,
    output: Path,
    splits: Splits,
    resume: bool,
    overwrite: bool,
    evaluate_dev: bool,
    trunk_cache: TrunkCache | None,
    prepare: Callable[[PeftModel], None] | None,
    lesson: Lesson | None,
    also: Callable[[Trained, Path], None] | None,
) -> Trained:
    if lesson is not None:
        splits = lesson.splits
        trunk_cache = lesson.trunk_cache if trunk_cache is None else trunk_cache
    if not splits.train:
        raise ValueError(f"task {config.task.name!r} has no training items; it is for evaluation only.")
    logger.info("%s", describe_splits(config.task.name, splits, "items"))
    check_config(config, len(splits.dev))
    task = with_chat_template(with_classes(config.task, splits.items), config.model)
    if task.scoring == "options":
        task = replace(task, classes=fixed_choices(splits.train))
    config = replace(config, task=task)
    if task.classes:
        warn_of_unseen_classes(task.classes, splits.train)
    check_beginning(config, output, splits.train, resume=resume, overwrite=overwrite)
    model, scoring, width = build_model(config, splits, output)
    if scoring.chat_template:
        logger.debug("prompts are put into the tokenizer's chat template (task.chat_template)")
    if prepare is not None:
        prepare(model)
    if lesson is not None:
        lesson.begin(model)
    trunk_cache = open_trunk_cache(config, model, trunk_cache)
    trainer = item_trainer(config, output, model, scoring, splits, trunk_cache)
    heads = None
    if reading_of(scoring):
        heads = CrossFitting(config, model, scoring, splits.train, trunk_cache)
        trainer.add_callback(heads)
    if resume:
        check_length(output, planned_steps(trainer.args, len(splits.train)))
    note_beginning(config, output, splits.train, resume=resume)
    started = time.perf_counter()
    config = with_length_power(config, model, scoring, splits, trunk_cache)  # type: ignore[arg-type]
    with peak_memory(trainer.args.device) as memory:
        if trainer.args.num_train_epochs or trainer.args.max_steps > 0:
            with training_shown(trainer, "item"):
                trainer.train(resume_from_checkpoint=resume)
        if heads is not None:
            heads.require()
        state = config.method.fit_posterior(model, _training(config, trainer, scoring, splits, trunk_cache))
        if heads is not None:
            state = {**state, **heads.finish()}
    seconds = time.perf_counter() - started - getattr(trainer, "evaluation_seconds", 0.0)
    if trunk_cache is not None:
        logger.debug("%s", trunk_cache.summary())
    metrics = training_metrics(config, trainer, len(splits.train), seconds, memory.peak) | epoch_record(trainer)
    if lesson is not None:
        metrics["teacher"] = lesson.record
    if heads is not None:
        metrics["head"] = heads.reading.described()
    metrics["cut_train_items"] = sum(item.id in scoring.cut for item in splits.train)
    if scoring.takes_classes:
        metrics["classes"] = config.task.classes
    else:
        metrics["chat_template"] = scoring.chat_template
    trained = Trained(
        config=config,
        model=model,
        scoring=scoring,
        metrics=metrics,
        state=state,
        trunk_cache=trunk_cache,
        splits=splits,
    )
    prediction = draws = None
    if splits.dev and (evaluate_dev or config.temperature_scaling):
        prediction = trained.predict_with_all_draws(splits.dev)
        if config.temperature_scaling:
            labels = torch.tensor([item.label for item in splits.dev])
            temperature = fit_temperature(prediction.predictive, labels)
            trained.temperature = temperature.value
            metrics |= temperature.record
            prediction = replace(prediction, predictive=prediction.predictive.tempered(trained.temperature))
        if is_adaptive(config.num_samples) and can_stop(config):
            draws = prediction
            trained.learn_settling(draws)
            prediction = trained.predict(splits.dev)
        metrics |= prediction.metrics() | {"split": "dev"}
    write_run(trained, output, CardFacts(classes=width), prediction, draws, also)  # type: ignore[arg-type]
    return trained


def training_metrics(
    config: RunConfig, trainer: Trainer, examples: int, seconds: float, peak_memory_bytes: int | None
) -> dict[str, Any]:
    """What metrics.json says of a training; of several processes the longest time and the largest memory."""
    model: Any = trainer.model
    return {
        "method": config.method.name,
        "task": config.task.name,
        "scoring": config.task.scoring,
        "model": config.model.name,
        "seed": config.seed,
        "train_examples": examples,
        "train_seconds": round(all_reduce_max(seconds) or 0.0, 2),
        "peak_memory_bytes": all_reduce_max(peak_memory_bytes),
        "trainable_parameters": trainable_parameters(model),
        "history": [entry for entry in trainer.state.log_history if "nll" in entry],
    }


def _training(
    config: RunConfig, trainer: BayesianLoraTrainer, scoring: Scoring, splits: Splits, trunk_cache: TrunkCache | None
) -> TrainingResult:
    size, device = config.batch_size, trainer.args.device

    def batches() -> Iterator[ChoiceBatch]:
        for first in range(0, len(splits.train), size):
            yield scoring(splits.train[first : first + size]).to(device)

    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    return TrainingResult(batches, len(splits.train), optimizer, trunk_cache, config.seed)

"""Training a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import PeftModel

from bayeslora.methods import State, TrainingResult, trainable_parameters
from bayeslora.prediction.temperature import fit_temperature
from bayeslora.runs.adaptive import can_stop, is_adaptive
from bayeslora.runs.beginning import check_beginning, check_config, check_length, note_beginning
from bayeslora.runs.building import build_model, open_trunk_cache
from bayeslora.runs.config import RunConfig
from bayeslora.runs.cross_fitting import CrossFitting, reading_of
from bayeslora.runs.distillation.lesson import Lesson, check_place, learn_from
from bayeslora.runs.epochs import epoch_record
from bayeslora.runs.heads import fixed_choices, train_head
from bayeslora.runs.items import choice_count, describe_splits, task_items, warn_of_unseen_classes, with_classes
from bayeslora.runs.length_power import with_length_power
from bayeslora.runs.loading import with_prompt
from bayeslora.runs.model_card import CardFacts
from bayeslora.runs.prediction import Prediction
from bayeslora.runs.run import Run
from bayeslora.runs.trainer import item_trainer, planned_steps, training_metrics
from bayeslora.runs.writing import write_run
from bayeslora.scoring import ChoiceBatch, Options, Scoring, get_scoring
from bayeslora.scoring.trunk_cache import TrunkCache
from bayeslora.system.folders import only_writer
from bayeslora.system.log import logger
from bayeslora.system.memory import peak_memory
from bayeslora.tasks import Splits
from bayeslora.training.progress import training_shown


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
        chosen |= {"splits": splits, "also": also}
        return train_head(config, output_dir, **chosen)  # type: ignore[return-value]
    output = Path(output_dir)
    if lesson is None and config.distill.teacher is not None:
        check_place(config.distill.teacher, output, resume=resume, overwrite=overwrite)
        lesson = learn_from(config, output)
    if lesson is not None:
        splits = lesson.splits
        trunk_cache = lesson.trunk_cache if trunk_cache is None else trunk_cache
    if splits is None:
        splits = task_items(config.task)
    training = Training(config, output, splits, trunk_cache=trunk_cache, prepare=prepare, lesson=lesson, also=also)
    return training.run(resume=resume, overwrite=overwrite, evaluate_dev=evaluate_dev)


@dataclass
class Training:
    """One training on items, from its splits to its folder; that on texts does some steps in a way of its own.

    Attributes:
        config: The run; what it leaves open is written down on the way.
        output: The run folder.
        splits: The items.
        trunk_cache: That of another run, then the run's own; like `prepare`, `lesson` and `also` as for `train`.
        heads: Those over the adapters, if there are any.
    """

    config: RunConfig
    output: Path
    splits: Any
    trunk_cache: TrunkCache | None = None
    prepare: Callable[[PeftModel], None] | None = None
    lesson: Lesson | None = None
    also: Callable[[Trained, Path], None] | None = None
    heads: CrossFitting | None = None
    unit: ClassVar[str] = "item"
    counted: ClassVar[str] = "item"
    """What N of KL / N counts."""

    def run(self, *, resume: bool, overwrite: bool, evaluate_dev: bool) -> Trained:
        """Train, predict dev and write the folder."""
        items = self.splits.train
        if not items:
            raise ValueError(f"task {self.config.task.name!r} has no training {self.unit}s; it is for evaluation only.")
        with only_writer(self.output):
            logger.info("%s", describe_splits(self.config.task.name, self.splits, f"{self.unit}s"))
            check_config(self.config, len(self.splits.dev))
            self.settle()
            check_beginning(self.config, self.output, items, resume=resume, overwrite=overwrite)
            model, scoring = self.build()
            trainer = self.trainer(model, scoring)
            if resume:
                check_length(self.output, planned_steps(trainer.args, len(trainer.train_dataset)))
            note_beginning(self.config, self.output, items, resume=resume)
            trained = self.fit(model, scoring, trainer, resume)
            self.write(trained, evaluate_dev)
        return trained

    def settle(self) -> None:
        """Write down what the items and the tokenizer say of the config: classes, fixed choices, the prompt."""
        task = with_prompt(with_classes(self.config.task, self.splits.items), self.config.model, self.splits.train)
        if issubclass(get_scoring(task.scoring), Options):
            task = replace(task, classes=fixed_choices(self.splits.train))
        self.config = replace(self.config, task=task)
        if task.classes:
            warn_of_unseen_classes(task.classes, self.splits.train)

    def build(self) -> tuple[PeftModel, Scoring]:
        """The model to train and what reads the items."""
        model, scoring = build_model(self.config, self.output, choice_count(self.config.task, self.splits))
        if scoring.chat_template:
            logger.debug("prompts are put into the tokenizer's chat template (task.chat_template)")
        if self.prepare is not None:
            self.prepare(model)
        if self.lesson is not None:
            self.lesson.begin(model)
        self.trunk_cache = open_trunk_cache(self.config, model, self.trunk_cache)
        return model, scoring

    def trainer(self, model: PeftModel, scoring: Scoring) -> Any:
        """What trains the model."""
        trainer = item_trainer(self.config, self.output, model, scoring, self.splits, self.trunk_cache)
        if reading_of(scoring):
            self.heads = CrossFitting(self.config, model, scoring, self.splits.train, self.trunk_cache)
            trainer.add_callback(self.heads)
        return trainer

    def fit(self, model: PeftModel, scoring: Scoring, trainer: Any, resume: bool) -> Trained:
        """The trained run, with its metrics."""
        started = time.perf_counter()
        self.config = with_length_power(self.config, model, scoring, self.splits, self.trunk_cache)  # type: ignore[arg-type]
        with peak_memory(trainer.args.device) as memory:
            if trainer.args.num_train_epochs or trainer.args.max_steps > 0:
                with training_shown(trainer, self.counted):
                    trainer.train(resume_from_checkpoint=resume)
            state = self.posterior(model, scoring, trainer)
        seconds = time.perf_counter() - started - getattr(trainer, "evaluation_seconds", 0.0)
        count = trainable_parameters(model)
        metrics = training_metrics(self.config, len(self.splits.train), seconds, memory.peak, count)
        metrics["history"] = [entry for entry in trainer.state.log_history if "nll" in entry]
        metrics |= epoch_record(trainer) | self.record(scoring, trainer)
        return Trained(
            config=self.config,
            model=model,
            scoring=scoring,
            metrics=metrics,
            state=state,
            trunk_cache=self.trunk_cache,
            splits=self.splits,
        )

    def posterior(self, model: PeftModel, scoring: Scoring, trainer: Any) -> State:
        """What the method and the heads know beyond the adapter."""

        def batches() -> Iterator[ChoiceBatch]:
            for first in range(0, len(self.splits.train), self.config.batch_size):
                yield scoring(self.splits.train[first : first + self.config.batch_size]).to(trainer.args.device)

        optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        ended = TrainingResult(batches, trainer.num_observations, optimizer, self.trunk_cache, self.config.seed)
        if self.heads is None:
            return self.config.method.fit_posterior(model, ended)
        self.heads.require()
        return {**self.config.method.fit_posterior(model, ended), **self.heads.finish()}

    def record(self, scoring: Scoring, trainer: Any) -> dict[str, Any]:
        """What metrics.json says of items alone."""
        record: dict[str, Any] = {"cut_train_items": sum(item.id in scoring.cut for item in self.splits.train)}
        if self.lesson is not None:
            record["teacher"] = self.lesson.record
        if self.heads is not None:
            record["head"] = self.heads.reading.described()
        if scoring.takes_classes:
            return record | {"classes": self.config.task.classes}
        return record | {"chat_template": scoring.chat_template}

    def write(self, trained: Trained, evaluate_dev: bool) -> None:
        """Predict dev, and write the folder."""
        if self.trunk_cache is not None:
            logger.debug("%s", self.trunk_cache.summary())
        prediction = draws = None
        if self.splits.dev and (evaluate_dev or self.config.temperature_scaling):
            prediction, draws = _of_dev(trained)
        facts = CardFacts(classes=choice_count(self.config.task, self.splits))
        write_run(trained, self.output, facts, prediction, draws, self.also)  # type: ignore[arg-type]


def _of_dev(run: Trained) -> tuple[Prediction, Prediction | None]:
    """The predictions of dev, and where items have their own number of draws those with all; adds to the metrics."""
    dev, draws = run.splits.dev, None
    prediction = run.predict_with_all_draws(dev)
    if run.config.temperature_scaling:
        temperature = fit_temperature(prediction.predictive, torch.tensor([item.label for item in dev]))
        run.temperature = temperature.value
        run.metrics |= temperature.record
        prediction = replace(prediction, predictive=prediction.predictive.tempered(run.temperature))
    if is_adaptive(run.config.num_samples) and can_stop(run.config):
        draws = prediction
        run.learn_settling(draws)
        prediction = run.predict(dev)
    run.metrics |= prediction.metrics() | {"split": "dev"}
    if prediction.num_samples and not run.config.samples_used(0):
        # Draws cost a pass each and are not always the better answer: the mean alone stands beside them.
        run.metrics["one_pass"] = run.predict(dev, 0).metrics()
    return prediction, draws

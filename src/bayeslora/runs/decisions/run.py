"""Decision models as runs: trained from a config into a folder, and scored on records that they have not seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from bayeslora.metrics import ranked_probability_score
from bayeslora.runs.config import RunConfig, TaskConfig
from bayeslora.runs.decisions.adapted import check_trains, decision_config
from bayeslora.runs.decisions.calibration import Signal
from bayeslora.runs.decisions.config import DecisionConfig
from bayeslora.runs.decisions.examples import held
from bayeslora.runs.decisions.files import is_decision_folder, save_calibration, write_model, write_parts
from bayeslora.runs.decisions.model import DecisionModel
from bayeslora.runs.items import subset
from bayeslora.runs.training import Trained, train
from bayeslora.scoring.codes import Template
from bayeslora.system.folders import only_replacer, to_be_written
from bayeslora.system.log import logger
from bayeslora.tasks.decisions import Record, is_decision_file, read_records
from bayeslora.tasks.decisions.items import DecisionItem, train_file, without_states
from bayeslora.tasks.decisions.questions import signature
from bayeslora.tasks.reading.rows import check_there

_READ = ("name", "train_examples", "test_examples", "subset_seed", "max_length", "template")
"""Of the options of a task."""


def is_decision_task(task: TaskConfig) -> bool:
    """Whether a task's name is a file of decision records, or a folder with one as train.jsonl."""
    return is_decision_file(train_file(task.name))


def train_decisions(
    config: RunConfig, output_dir: str | Path, *, overwrite: bool = False, extend: str | Path | None = None
) -> dict[str, Any]:
    """Fit heads on a file of records (all of it: nothing is set aside) and write the model to `output_dir`.

    A folder has train.jsonl and may have test.jsonl, on which the model is then scored. The adapter's method and the
    options of its training mean nothing for heads on frozen features; what was set and is not read is said.

    Args:
        config: The run; `model`, `seed`, and of the task `name`, `train_examples`, `test_examples`, `subset_seed`,
            `template` and, where it is not the default, `max_length` count.
        output_dir: The folder.
        overwrite: Replace what is there.
        extend: Folder of a decision model, whose records come before those of the task and are not read again; it stays
            as it is, unless it is `output_dir` as well. The base model and its options are its own.

    Returns:
        `metrics.json`: how many records, leave-one-out NLL of each question (nats), and the scores on the test records.

    Raises:
        FileExistsError: There is something at `output_dir`, and not `overwrite`.
        RuntimeError: Another process writes to `output_dir`.
        TaskError: A record is wrong.
        ValueError: There is too little to learn from, or an option of the model is not for heads.
    """
    output = Path(output_dir)
    with to_be_written(output, overwrite=overwrite):
        model, metrics = _trained(config, extend)
        write_model(model, output, metrics)
    return metrics


def train_adapted(
    config: RunConfig, output_dir: str | Path, *, resume: bool = False, overwrite: bool = False
) -> Trained:
    """Train an adapter below codes or heads, as `bayeslora.runs.train`, into a folder of a decision model.

    The splits are those of `bayeslora.tasks.decisions.items.read_splits`.

    Args:
        config: The run, with task.scoring "codes" or "heads".
        output_dir: The folder.
        resume: As of `train`.
        overwrite: As of `train`.

    Raises:
        TaskError: A record is wrong.
        ValueError: The method trains no adapter, a question has more options than there are codes, or as of `train`.
    """
    check_trains(config.method, config.task.scoring)

    def also(run: Trained, folder: Path) -> None:
        model = DecisionModel(decision_config(run.config), method=config.method, train=config.train)
        model.take(run, [item for item in run.splits.train if isinstance(item, DecisionItem)])
        write_parts(model, folder)

    return train(config, output_dir, resume=resume, overwrite=overwrite, also=also)


def calibrate_folder(
    folder: str | Path,
    records: str | Path,
    *,
    alpha: float | None = None,
    delta: float = 0.1,
    signal: Signal = "confidence",
    coverage: float | None = None,
    device: str | None = None,
) -> DecisionModel:
    """Calibrate the model in a folder, in the place of an earlier calibration.

    Args:
        folder: Of the model.
        records: As `DecisionModel.calibrate`, like `alpha`, `delta` and `signal`.
        alpha: Share of errors to promise, or None.
        delta: Probability of a broken promise.
        signal: What the threshold is on.
        coverage: Of the sets, or None.
        device: As `DecisionModel.load`.

    Raises:
        RuntimeError: Another process writes to the folder.
        TaskError: There is no such file, or a record is wrong.
        FileNotFoundError, ValueError: As `DecisionModel.load` and `DecisionModel.calibrate`.
    """
    if not is_decision_folder(folder):
        # Says what is missing, and makes no lock beside a wrong name.
        return DecisionModel.load(folder)
    check_there(records)
    with only_replacer(folder):
        model = DecisionModel.load(folder, device=device)
        model.calibrate(records, alpha=alpha, delta=delta, signal=signal, coverage=coverage)
        save_calibration(model, Path(folder))
    return model


def _trained(config: RunConfig, extend: str | Path | None) -> tuple[DecisionModel, dict[str, Any]]:
    train = train_file(config.task.name)
    if config.model.merge or config.model.quantization != "none":
        raise ValueError("model.merge and model.quantization are not read for decision records; leave them out.")
    task, settings = config.task, _settings(config)
    model = None if extend is None else _before(extend, config, settings)
    if model is None:
        logger.info("heads on the frozen model; for an adapter below them: --task.scoring heads, with a method")
    unread = [name for name in _unread(config) if model is None or name != "task.scoring"]
    unread += ["task.template"] if model is not None and task.template else []
    if unread:
        logger.warning("records of decisions: options that are not read: %s", ", ".join(unread))
    shared = model.questions if model is not None else None
    records = subset(read_records(train, shared or None, require_labels=True), task.train_examples, task.subset_seed)
    before = 0 if model is None else held(model.examples).records
    if model is None:
        model = DecisionModel(settings, template=Template.of(task.template)).fit(records)
    else:
        model = model.extend(records)
    metrics: dict[str, Any] = {} if model.adapted is None else dict(model.adapted.run.metrics)
    metrics |= {"task": task.name, "model": model.config.model, "records": before + len(records)}
    metrics |= {} if extend is None else {"extends": str(extend), "records_before": before}
    metrics["leave_one_out"] = _leave_one_out(model)
    test = train.with_name(f"test{train.suffix}")
    if train.stem == "train" and test.is_file():
        records = subset(read_records(test), task.test_examples, task.subset_seed)
        metrics |= {"split": "test"} | evaluate_decisions(model, unseen(records, model))
    return model, metrics


def _settings(config: RunConfig) -> DecisionConfig:
    base, longest = config.model, config.task.max_length
    longest_or_none = None if longest == TaskConfig().max_length else longest
    return DecisionConfig(
        base.name, base.dtype, base.device, base.revision, max_length=longest_or_none, seed=config.seed
    )


def _before(folder: str | Path, config: RunConfig, settings: DecisionConfig) -> DecisionModel:
    """The model in a folder, for more records.

    Raises:
        ValueError: It cannot be extended, or an option was set to another value than the model's.
    """
    model = DecisionModel.load(folder, device=None if settings.device == "auto" else settings.device)
    held(model.examples)
    for one in fields(DecisionConfig):
        given, own = getattr(settings, one.name), getattr(model.config, one.name)
        if one.name != "device" and given not in (own, getattr(_settings(RunConfig()), one.name)):
            raise ValueError(
                f"the model in {folder} that is extended has {one.name} {own!r}, but {given!r} was asked for; leave "
                "that option out, or train on all records together."
            )
    readout = "heads" if model.config.readout == "auto" else model.config.readout
    given = {config.task.scoring, type(config.method).__name__}
    own = {readout} if model.method is None else {readout, type(model.method).__name__}
    if other := given - own - {TaskConfig().scoring, type(RunConfig().method).__name__}:
        raise ValueError(
            f"the model in {folder} that is extended answers by {' and '.join(sorted(own))}, but {sorted(other)[0]} "
            "was asked for; leave that option out, or train on all records together."
        )
    return model


def _unread(config: RunConfig) -> list[str]:
    """Options that were set to other values than their defaults, and mean nothing for records of decisions."""
    usual = RunConfig()
    own = [name for name in ("num_samples", "temperature_scaling", "batch_size") if _differ(config, usual, name)]
    return [
        *own,
        *(
            f"task.{one.name}"
            for one in fields(TaskConfig)
            if one.name not in _READ and _differ(config.task, usual.task, one.name)
        ),
    ]


def _differ(one: Any, other: Any, name: str) -> bool:
    return bool(getattr(one, name) != getattr(other, name))


def evaluate_decisions(model: DecisionModel, records: Sequence[Record]) -> dict[str, Any]:
    """Accuracy, NLL (nats) and the mean top probability of the labelled questions of records, and their drift.

    The `ranked_probability_score` is of the score questions alone, where there is one.

    Soft labels count in expectation for the NLL, by their most probable option for the accuracy. `drift` is what
    `DecisionModel.drift` says of the states; where nothing was fitted there is none.
    """
    right, nll, top = [], [], []
    rows = list(model.labelled(records))
    for row in rows:
        right.append(not row.wrong)
        top.append(max(row.answer.probabilities))
        pairs = zip(row.target, row.answer.probabilities, strict=True)
        nll.append(-math.fsum(t * math.log(max(p, 1e-300)) for t, p in pairs if t))
    count = max(1, len(nll))
    ordered = [row for row in rows if row.answer.question.kind == "score"]
    ranked = [ranked_probability_score(np.array([row.answer.probabilities]), np.array([row.target])) for row in ordered]
    scores = {"accuracy": sum(right) / count, "nll": math.fsum(nll) / count, "confidence": math.fsum(top) / count}
    scores |= {"ranked_probability_score": math.fsum(ranked) / len(ranked)} if ranked else {}
    shift = model.drift({row.state: row.answer.novelty for row in rows})
    return scores | {"num_examples": len(nll)} | ({} if shift is None else {"drift": shift.to_dict()})


def unseen(records: Sequence[Record], model: DecisionModel) -> list[Record]:
    """Records whose state the model was not fitted on; how many are left out is said."""
    return without_states(records, model.trained_states, "test records")


def _leave_one_out(model: DecisionModel) -> dict[str, Any]:
    if model.adapted is not None:
        found = model.adapted.run.metrics
        return {"all questions": {"labels": found["train_examples"], "nll": found["head"]["leave_one_out_nll"]}}
    names = {signature(question): name for name, question in model.questions.items()}
    return {names.get(key, key[1]): head.described() for key, head in model.heads.by_signature.items()}

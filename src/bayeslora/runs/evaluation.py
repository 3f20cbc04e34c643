"""The scores of a finished run on a split, and the files that hold them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayeslora.readouts.questions.reading import QuestionReading
from bayeslora.runs.adaptive import NOT_FOR_TEXTS, NumSamples, is_adaptive
from bayeslora.runs.config import TaskConfig
from bayeslora.runs.cross_fitting import reading_of
from bayeslora.runs.decisions.files import trained_states
from bayeslora.runs.finished import load_run
from bayeslora.runs.items import build_task, labelled_items, subset, task_items, with_file_options, with_heads
from bayeslora.runs.prediction import Prediction, write_rows
from bayeslora.runs.run import Run
from bayeslora.system.files import write_json
from bayeslora.system.folders import only_writer, replaced_together
from bayeslora.system.locating import require_place
from bayeslora.system.log import logger
from bayeslora.system.processes import barrier, is_main
from bayeslora.tasks import LocalFile, allow_task
from bayeslora.tasks.decisions import is_decision_file
from bayeslora.tasks.decisions.items import train_file, without_trained
from bayeslora.tasks.reading.rows import READERS, check_there

if TYPE_CHECKING:
    from bayeslora.runs.language_modelling.evaluation import TextPrediction

_SAME = ("method", "model", "seed", "scoring", "task", "split")


def evaluate(
    folder: str | Path,
    *,
    task: str | None = None,
    input: str | Path | None = None,
    split: str = "test",
    num_samples: NumSamples = None,
    examples: int | None = None,
    output_dir: str | Path | None = None,
    file_layout: Mapping[str, Any] | None = None,
    device: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Score a run on a split and write metrics.json, predictions.jsonl (of texts: texts.jsonl) and reliability.png.

    Args:
        folder: The run folder, or the Hub id of a pushed run.
        task: Another task than the run's own, by name or path, of which a split is scored.
        input: A file of which all items (records, texts) are scored, in the place of a task; each needs a label.
        split: "test" or "dev". Of a file that is scored whole metrics.json says "all".
        num_samples: Posterior draws; default: the run's; "auto": of each item until its answer is settled.
        examples: Use only this many items; default: the run's number for its own task, all for another.
        output_dir: Default: the run folder for its own task, `folder/evaluation/<task or file>` for another. A run on
            the Hub needs one.
        file_layout: How the task's files are read where they are not laid out as the run's own: question_column,
            choices_column, label_column, labels, id_column, group_column, choices.
        device: As `load_run`.
        overwrite: Replace the evaluation of another run, task or split in the output folder; one of the same is
            renewed anyway.

    Raises:
        FileExistsError: Another run is in the output folder, or another evaluation and not `overwrite`.
        RuntimeError: Another process writes there.
        TaskError: There is no such file.
        ValueError: The split is unknown or empty, a run on the Hub has no `output_dir`, `file_layout` is given for a
            task that is no file, or `input` beside a task or for dev.
    """
    if split not in ("test", "dev"):
        raise ValueError(f"split must be 'test' or 'dev', got {split!r}.")
    if input is not None and (task is not None or split == "dev"):
        other = "split 'dev'" if task is None else f"task {task!r}"
        raise ValueError(f"input {str(input)!r} is scored whole, and {other} is of a task; give one of the two.")
    if output_dir is None:
        require_place(folder)
    if task is not None:
        allow_task(task)
    for file in (input, task if task is not None and Path(task).suffix.lower() in READERS else None):
        if file is not None:
            check_there(file)
    run = load_run(folder, device=device)
    name = task if input is None else str(input)
    own = name is None or (input is None and name == run.config.task.name)
    described = run.config.task
    if not own:
        described = replace(described, name=str(name), train_examples=None, dev_examples=None, test_examples=None)
    if file_layout:
        described = with_file_options(described, file_layout)
        if input is None and not isinstance(build_task(described), LocalFile):
            raise ValueError(f"{', '.join(file_layout)} say how a file is read, but {described.name!r} is no file.")
    if examples is not None:
        setattr(described, f"{split}_examples", examples)
    target = Path(output_dir or (folder if own else Path(folder) / "evaluation" / Path(described.name).stem))
    scored = split if input is None else "all"
    with only_writer(target):
        if is_main():
            identity = run.metrics | {"task": described.name, "split": scored}
            check_evaluation(target, Path(folder), identity, overwrite)
        found = _to_score(run, described, split, whole=input is not None)
        if run.scoring.of_decisions:
            found = without_trained(found, trained_states(folder), described.name)
        prediction, scores = _predicted(run, found, num_samples)
        metrics = run.scored(described.name, scored, scores)
        if is_main():
            write_evaluation(target, prediction, metrics)
        barrier()
    logger.info("written to %s: metrics.json, %s, reliability.png", target, prediction.file)
    return metrics


def _predicted(
    run: Run, found: Sequence[Any], num_samples: NumSamples
) -> tuple[Prediction | TextPrediction, dict[str, Any]]:
    """What the run predicts for items or texts, and its scores."""
    if run.config.task.scoring != "text":
        prediction = run.predict(found, num_samples)
        return prediction, prediction.metrics()
    from bayeslora.runs.language_modelling.evaluation import predict_texts

    if is_adaptive(num_samples):
        raise ValueError(NOT_FOR_TEXTS)
    texts = predict_texts(run, found, num_samples)
    return texts, texts.metrics(run)


def _to_score(run: Run, described: TaskConfig, split: str, *, whole: bool) -> list[Any]:
    """The items or texts of a split of a task, or those of a file as a whole."""
    if run.scoring.of_decisions and not is_decision_file(train_file(described.name)):
        raise ValueError(
            f"expected records of typed decisions to score, but {described.name!r} is no file of them (a model that "
            "was fitted in Python names none); score a file of them by --input FILE (in Python: input)."
        )
    if described.scoring == "text":
        from bayeslora.runs.language_modelling.texts import read_texts, text_splits

        found = read_texts(described.name) if whole else getattr(text_splits(described), split)
    else:
        found = labelled_items(described) if whole else getattr(task_items(described), split)
        if whole and isinstance(reading := reading_of(run.scoring), QuestionReading):
            found = with_heads(found, reading.heads[0], described.name)
    if not found:
        unit = "texts" if described.scoring == "text" else "items"
        raise ValueError(f"{described.name!r} has no {unit}." if whole else _no_split(described, split, unit))
    return subset(found, described.test_examples, described.subset_seed) if whole else found


def _no_split(described: TaskConfig, split: str, unit: str) -> str:
    return f"task {described.name!r} has no {split} {unit}; score a file of them by --input FILE (in Python: input)."


def write_evaluation(target: Path, prediction: Prediction | TextPrediction, metrics: dict[str, Any]) -> None:
    """metrics.json, a record of each item and reliability.png, all or none; for the only writer of the folder."""
    with replaced_together(target, ("metrics.json", prediction.file, "reliability.png")) as aside:
        write_rows(aside / prediction.file, prediction.rows())
        prediction.draw(aside / "reliability.png", metrics)
        write_json(aside / "metrics.json", metrics)


def check_evaluation(target: Path, run: Path, metrics: Mapping[str, Any], overwrite: bool) -> None:
    """Whether an evaluation may be written to `target`: one of the same run, task and split is renewed.

    Args:
        target: The folder.
        run: That of the run.
        metrics: With what identifies the evaluation: method, model, seed, scoring, task and split.
        overwrite: Whether another evaluation may be replaced.

    Raises:
        FileExistsError: Another run is there, or the evaluation of another run, task or split.
    """
    own = target.resolve() == run.resolve()
    if not own and (target / "adapter").is_dir():
        raise FileExistsError(f"{target} is the folder of another run, whose metrics.json belongs to it; name another.")
    there = target / "metrics.json"
    evaluated = not own or any((target / name).exists() for name in ("predictions.jsonl", "texts.jsonl"))
    if overwrite or not evaluated or not there.is_file():
        return
    present = json.loads(there.read_text(encoding="utf-8"))
    other = [name for name in _SAME if not isinstance(present, dict) or present.get(name) != metrics.get(name)]
    if other:
        said = ", ".join(f"{name} {present.get(name)!r}" for name in other) if isinstance(present, dict) else "no run"
        raise FileExistsError(
            f"{target} holds another evaluation ({said}), which is left alone: name another --output_dir, or replace "
            "it by --overwrite (in Python: overwrite=True)."
        )

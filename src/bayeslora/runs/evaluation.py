"""The scores of a finished run on a split, and the files that hold them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bayeslora.metrics.reliability_diagram import reliability_diagram
from bayeslora.runs.adaptive import NOT_FOR_TEXTS, NumSamples, is_adaptive
from bayeslora.runs.config import TaskConfig
from bayeslora.runs.evaluation_files import EVALUATION_PARTS, TEXT_EVALUATION_PARTS, check_evaluation
from bayeslora.runs.finished import load_run
from bayeslora.runs.items import build_task, task_items, with_file_options
from bayeslora.runs.prediction import Prediction, write_rows
from bayeslora.runs.run import Run
from bayeslora.system.files import write_json
from bayeslora.system.folders import only_writer, replaced_together
from bayeslora.system.locating import is_hub_run
from bayeslora.system.processes import barrier, is_main
from bayeslora.tasks import LocalFile, allow_task

logger = logging.getLogger("bayeslora")

__all__ = ["evaluate", "write_evaluation"]


def evaluate(
    folder: str | Path,
    *,
    task: str | None = None,
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
        task: Another task than the run's own, by name or path.
        split: "test" or "dev".
        num_samples: Posterior draws; default: the run's; "auto": of each item until its answer is settled.
        examples: Use only this many items; default: the run's number for its own task, all for another.
        output_dir: Default: the run folder for its own task, `folder/evaluation/<task>` for another. A run on the Hub
            needs one.
        file_layout: How the task's files are read where they are not laid out as the run's own: question_column,
            choices_column, label_column, labels, id_column, group_column, choices.
        device: As `load_run`.
        overwrite: Replace the evaluation of another run, task or split in the output folder; one of the same is
            renewed anyway.

    Raises:
        FileExistsError: Another run is in the output folder, or another evaluation and not `overwrite`.
        RuntimeError: Another process writes there.
        ValueError: The split is unknown or empty, a run on the Hub has no `output_dir`, or `file_layout` is given for a
            task that is no file.
    """
    if split not in ("test", "dev"):
        raise ValueError(f"split must be 'test' or 'dev', got {split!r}.")
    if output_dir is None and is_hub_run(str(folder)):
        raise ValueError(
            f"there is no folder {str(folder)!r} here. To evaluate the run of that Hub id, say where to write the "
            "results: output_dir=FOLDER."
        )
    if task is not None:
        allow_task(task)
    run = load_run(folder, device=device)
    own = task is None or task == run.config.task.name
    described = run.config.task
    if not own:
        described = replace(described, name=str(task), train_examples=None, dev_examples=None, test_examples=None)
    if file_layout:
        described = with_file_options(described, file_layout)
        if not isinstance(build_task(described), LocalFile):
            raise ValueError(f"{', '.join(file_layout)} say how a file is read, but {described.name!r} is no file.")
    if examples is not None:
        setattr(described, f"{split}_examples", examples)
    target = Path(output_dir or (folder if own else Path(folder) / "evaluation" / Path(described.name).stem))
    with only_writer(target):
        if is_main():
            identity = run.metrics | {"task": described.name, "split": split}
            check_evaluation(target, Path(folder), identity, overwrite)
        if run.config.task.scoring == "text":
            if is_adaptive(num_samples):
                raise ValueError(NOT_FOR_TEXTS)
            from bayeslora.runs.language_modelling.evaluation import evaluate_texts

            metrics = evaluate_texts(run, described, split, num_samples, target)
        else:
            metrics = _evaluate(run, described, split, num_samples, target)
    parts = TEXT_EVALUATION_PARTS if run.config.task.scoring == "text" else EVALUATION_PARTS
    logger.info("written to %s: %s", target, ", ".join(parts))
    return metrics


def _evaluate(run: Run, described: TaskConfig, split: str, num_samples: NumSamples, target: Path) -> dict[str, Any]:
    items = getattr(task_items(described), split)
    if not items:
        raise ValueError(f"task {described.name!r} has no {split} items.")
    prediction = run.predict(items, num_samples)
    metrics = run.scored(described.name, split, prediction.metrics())
    if is_main():
        write_evaluation(target, prediction, metrics)
    barrier()
    return metrics


def write_evaluation(target: Path, prediction: Prediction, metrics: dict[str, Any]) -> None:
    """metrics.json, predictions.jsonl and reliability.png, all or none; for the only writer of the folder."""
    labels = torch.tensor([item.label for item in prediction.items])
    curves = {str(metrics["method"]): (prediction.predictive.probabilities, labels)}
    with replaced_together(target, EVALUATION_PARTS) as aside:
        write_rows(aside / "predictions.jsonl", prediction.rows())
        reliability_diagram(curves, aside / "reliability.png", title=f"{metrics['task']} ({metrics['split']})")
        write_json(aside / "metrics.json", metrics)

"""A plain LoRA that is trained on the predictions of another run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bayeslora.methods import Lora
from bayeslora.runs.adaptive import NumSamples
from bayeslora.runs.config import DistillConfig, RunConfig, TrainConfig
from bayeslora.runs.distillation.lesson import check_place, open_teacher, taught, unlabelled_items
from bayeslora.runs.items import task_items
from bayeslora.runs.loading import merge_resolved
from bayeslora.runs.run import Run
from bayeslora.runs.training import Trained, train
from bayeslora.system.locating import run_folder
from bayeslora.tasks import Splits


def distill(
    teacher: str | Path,
    output_dir: str | Path,
    *,
    unlabelled: str | Path | None = None,
    file_layout: Mapping[str, Any] | None = None,
    num_samples: NumSamples = None,
    epochs: float | None = None,
    learning_rate: float | None = None,
    start: str = "teacher",
    device: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Trained:
    """Train a plain LoRA on the predictive probabilities of a run, for what has no mean that one pass can serve.

    The loss is the cross-entropy to the teacher's probabilities, its temperature included (Hinton et al., arXiv
    1503.02531; of an ensemble's mean as in Bayesian dark knowledge, arXiv 1506.04416), on the run's own training items
    and any without labels. The result is a run folder as `bayeslora.runs.train` writes it, with an ordinary PEFT
    adapter, and `teacher/`, the predictions, so that what was killed goes on there.

    Args:
        teacher: Run folder, or the Hub id of a pushed run, with scoring cloze, letter or classification.
        output_dir: The student's run folder.
        unlabelled: JSONL, CSV or Parquet file of further items; labels, if any, are not read.
        file_layout: How that file is read where it is not laid out as the teacher's own items (`predict_file`).
        num_samples: Posterior draws of the teacher; default: its own number, at most 4; "auto": of each item as many
            as it needs.
        epochs: Passes over all items; default: those of half of the teacher's optimizer steps.
        learning_rate: Default: the teacher's, or 1e-3 where its method brings an optimizer of its own.
        start: "teacher" begins with the mean of the teacher's adapter where that is a LoRA, "fresh" does not.
        device: As `load_run`.
        resume: Go on from the newest checkpoint in `output_dir`.
        overwrite: Replace a run that is in `output_dir`.

    Raises:
        FileExistsError: There is a run in `output_dir`, and neither `resume` nor `overwrite`.
        ValueError: The teacher writes texts or predicts by a head, the folder is its own, or a file is wrong.
    """
    output = Path(output_dir)
    check_place(teacher, output, resume=resume, overwrite=overwrite)
    run = open_teacher(teacher, device)
    told: Any = {"num_samples": num_samples, "start": start, "layout": dict(file_layout or {})}
    options = DistillConfig(teacher=str(teacher), unlabelled=None if unlabelled is None else str(unlabelled), **told)
    splits, further = task_items(run.config.task), unlabelled_items(options, run.config.task)
    config = student_config(run, options, splits, len(further), epochs, learning_rate)
    lesson = taught(run, config, splits, further, output)
    del run
    return train(config, output, resume=resume, overwrite=overwrite, lesson=lesson)


def student_config(
    teacher: Run,
    options: DistillConfig,
    splits: Splits,
    unlabelled: int,
    epochs: float | None = None,
    learning_rate: float | None = None,
) -> RunConfig:
    """The config of a plain LoRA of the teacher's shape.

    Args:
        teacher: Its teacher.
        options: What is told of the teaching.
        splits: The teacher's items.
        unlabelled: How many further items there are.
        epochs: As the last, that of `distill`.
        learning_rate: See there.
    """
    config, folder = teacher.config, run_folder(str(options.teacher))
    shape = {name: getattr(config.method, name) for name in Lora.argument_names()}
    share = len(splits.train) / max(1, len(splits.train) + unlabelled)
    rate = _learning_rate(config) if learning_rate is None else learning_rate
    length = _length(config.train, share, epochs)
    return replace(
        config,
        model=merge_resolved(config.model, folder),
        method=Lora(**shape),
        distill=options,
        train=replace(config.train, label_smoothing=0.0, choose_epoch=False, learning_rate=rate, **length),
        temperature_scaling=bool(splits.dev),
    )


def _length(of: TrainConfig, share: float, epochs: float | None) -> dict[str, Any]:
    """Half of the teacher's optimizer steps, on items of which only `share` were the teacher's."""
    if epochs is not None:
        return {"epochs": epochs, "max_steps": None}
    if of.max_steps is not None:
        return {"max_steps": max(1, of.max_steps // 2)}
    # A teacher of 0 epochs went on from an adapter: one pass is what there is to learn.
    return {"epochs": share * (of.epochs / 2 if of.epochs else 1.0)}


def _learning_rate(config: RunConfig) -> float:
    """The teacher's, where it is one of AdamW or of an optimizer of LoRA pairs."""
    own = config.method.trainer_options(config.train.learning_rate, 1, 1)
    return TrainConfig().learning_rate if "optimizer_cls_and_kwargs" in own else config.train.learning_rate

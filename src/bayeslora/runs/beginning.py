"""Whether a training may begin in a folder, and whether it may go on from the checkpoints there."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from bayeslora.options.ranges import check_options
from bayeslora.runs.adaptive import check_adaptive, is_adaptive
from bayeslora.runs.config import RunConfig, describe
from bayeslora.runs.config_files import dump_config, read_config
from bayeslora.runs.differences import at_defaults, completed, differences, same_meaning
from bayeslora.runs.kept import items_digest
from bayeslora.scoring.codes import Template
from bayeslora.system.files import last_complete_checkpoint, write_json
from bayeslora.system.log import logger
from bayeslora.system.processes import barrier, is_main
from bayeslora.system.reading import read_json
from bayeslora.training.arguments import check_arguments

_BEGINNING = "beginning.json"

_FREE = (
    *("model.device", "model.gradient_checkpointing", "task.dev_examples", "task.test_examples"),
    *(f"train.{name}" for name in ("epochs", "max_steps", "logging_steps", "save_steps", "report_to")),
    *(f"train.{name}" for name in ("cache_trunk", "cache_trunk_folder", "cache_trunk_limit")),
    *("num_samples", "temperature_scaling", "batch_size"),
)
"""Options that may change when a training goes on: its length, what is logged and stored, and how it predicts."""

_CHOOSES_EPOCH = ("task.dev_examples", "num_samples")
"""Of these, what the scores of the epochs so far depend on: with `train.choose_epoch` they may not."""

_FREE_ARGUMENTS = re.compile(r"(logging|save|log|eval|dataloader|report|push|hub)_.*|disable_tqdm|run_name|use_cpu")

_ITEMS = tuple(
    f"task.{name}"
    for name in (
        *("name", "source", "train_examples", "subset_seed", "question_column", "choices_column"),
        *("label_column", "labels", "id_column", "group_column", "choices"),
    )
)
"""Options that only say which the training items are: where these are the same, they may be said otherwise."""


def check_config(config: RunConfig, dev_items: int) -> None:
    """What would fail only after the training.

    Raises:
        ValueError: A value is out of its range (a config may change after it was made), there is nothing to fit a
            temperature or choose an epoch on, the epochs' ends cannot be chosen from, items cannot have draws of their
            own number, or the config cannot be written.
    """
    check_options(config)
    check_arguments(config.train.arguments, texts=config.task.scoring == "text")
    if config.temperature_scaling and not dev_items:
        raise ValueError(f"temperature_scaling needs dev items, but task {config.task.name!r} has none.")
    if config.train.choose_epoch:
        _check_choice_of_epoch(config, bool(dev_items))
    if is_adaptive(config.num_samples):
        check_adaptive(config, dev_items)
    dump_config(config)


def _check_choice_of_epoch(config: RunConfig, has_dev: bool) -> None:
    reason = None
    if config.task.scoring == "text":
        reason = "it predicts items with choices, and task.scoring is text"
    elif not has_dev:
        reason = f"it needs dev items, and task {config.task.name!r} has none"
    elif config.train.save_steps is not None:
        reason = "it saves at each epoch's end, and train.save_steps says otherwise (leave it out)"
    elif config.method.of_whole_training:
        reason = f"what {type(config.method).__name__} predicts with comes from the whole training"
    if reason is not None:
        raise ValueError(f"train.choose_epoch does not go with this run: {reason}.")


def check_beginning(
    config: RunConfig, output: Path, items: Sequence[Any], *, resume: bool = False, overwrite: bool = False
) -> None:
    """Whether the run of `config` may be trained into `output`; of several processes the main one looks.

    Raises:
        FileExistsError: A run is there, and neither `resume` nor `overwrite` says what to do with it.
        ValueError: Both do; or the run that `resume` would go on with has another config or other training items.
    """
    if resume and overwrite:
        raise ValueError("resume goes on with the run in the folder and overwrite replaces it; give one of them.")
    if overwrite or not is_main():
        return
    checkpoint = last_complete_checkpoint(output / "checkpoints")
    finished = (output / "metrics.json").is_file() or (output / "adapter").is_dir()
    if not resume:
        if finished or checkpoint:
            what = "a finished run" if finished else "the checkpoints of a run that has not ended"
            raise FileExistsError(
                f"{output} holds {what}, which is left alone: go on with it by --resume, replace it by "
                "--overwrite (in Python: resume=True, overwrite=True), or name another folder."
            )
        return
    if (output / "checkpoints" / _BEGINNING).is_file():
        noted = read_json(output / "checkpoints" / _BEGINNING)
        found = _differences(noted["config"], config, noted["train_items"] == items_digest(items))
        if noted["train_items"] != items_digest(items):
            found.append("the training items are others")
    elif (output / "config.yaml").is_file():
        found = _differences(describe(read_config(output / "config.yaml")), config, same_items=False)
    else:
        found = []
        if checkpoint:
            logger.warning("%s does not say which config it is from; it is taken as it is", checkpoint)
    if found:
        raise ValueError(
            f"{output} holds a run of another config, which cannot be resumed under this one: {'; '.join(found)}. Go "
            "back to that config, begin anew with --overwrite (in Python: overwrite=True), or name another "
            "folder."
        )


def check_finished(config: RunConfig, output: Path, apart_from: Iterable[str] = ()) -> None:
    """Whether the finished run in `output` is one of this config, apart from options that do not matter for it.

    Raises:
        ValueError: It is not; the message names the options.
    """
    # What the config leaves open is read off the items and the tokenizer, and then written.
    found_out = {
        "task.classes": not config.task.classes,
        "task.chat_template": config.task.chat_template == "auto",
        "task.length_power": config.task.length_power == "auto",
    }
    found_out |= {f"task.template.{each.name}": each.name not in config.task.template for each in fields(Template)}
    skipped = (*apart_from, *(name for name, left_open in found_out.items() if left_open))
    found = _differences(describe(read_config(output / "config.yaml")), config, same_items=False, skipped=skipped)
    if found:
        raise ValueError(
            f"{output} holds a finished run of another config: {'; '.join(found)}. Name another output folder, or "
            "remove that run."
        )


def note_batches(config: RunConfig) -> None:
    """Say which number of items is which where only that of predictions was set, which may be meant for training."""
    usual = RunConfig()
    if config.batch_size != usual.batch_size and config.train.batch_size == usual.train.batch_size:
        logger.warning(
            "batch_size %d counts items of a prediction's forward; a step of training has %d: train.batch_size",
            config.batch_size,
            config.train.batch_size,
        )


def check_length(output: Path, steps: int) -> None:
    """Whether a training of `steps` can go on from the newest checkpoint.

    Raises:
        ValueError: The checkpoint is beyond it.
    """
    checkpoint = last_complete_checkpoint(output / "checkpoints")
    if checkpoint is None:
        return
    reached = int(checkpoint.rpartition("-")[2])
    if reached > steps:
        raise ValueError(
            f"{checkpoint} is at step {reached}, but this config ends at step {steps}; a run can be resumed with the "
            "same or more epochs (train.epochs, train.max_steps), not with fewer."
        )


def note_beginning(config: RunConfig, output: Path, items: Sequence[Any], *, resume: bool) -> None:
    """Note the config beside the checkpoints, before there are any.

    Without `resume`, those of an earlier run stay as `checkpoints.previous` until this run has ended; a run that was
    killed before its first checkpoint leaves none, and those of the run before it stay. Of several processes the main
    one does it, and all of them return when it is done.
    """
    checkpoints, previous = output / "checkpoints", output / "checkpoints.previous"
    if is_main():
        if not resume and last_complete_checkpoint(checkpoints) is not None:
            shutil.rmtree(previous, ignore_errors=True)
            checkpoints.rename(previous)
        elif not resume:
            shutil.rmtree(checkpoints, ignore_errors=True)
        if previous.exists():
            logger.info("%s holds the checkpoints of the run before, and goes when this one has ended well", previous)
        write_json(checkpoints / _BEGINNING, {"config": describe(config), "train_items": items_digest(items)})
    barrier()


def _differences(present: Any, config: RunConfig, same_items: bool, skipped: tuple[str, ...] = ()) -> list[str]:
    """The options in which a run of the config `present` (JSON) is another than one of `config`."""
    wanted = json.loads(json.dumps(describe(config)))
    present = completed(json.loads(json.dumps(present)), wanted, json.loads(json.dumps(at_defaults(config))))
    chosen_by = _CHOOSES_EPOCH if config.train.choose_epoch else ()
    free = (*(name for name in _FREE if name not in chosen_by), *skipped, *(_ITEMS if same_items else ()))
    return differences(*(same_meaning(_without(each, free)) for each in (present, wanted)))


def _without(config: Any, names: Iterable[str], prefix: str = "") -> Any:
    """A config as JSON without the options of these dotted names, and without free TrainingArguments."""
    if not isinstance(config, dict):
        return config
    kept = {name: value for name, value in config.items() if f"{prefix}{name}" not in names}
    if prefix == "train.arguments.":
        kept = {name: value for name, value in kept.items() if not _FREE_ARGUMENTS.fullmatch(name)}
    return {name: _without(value, names, f"{prefix}{name}.") for name, value in kept.items()}

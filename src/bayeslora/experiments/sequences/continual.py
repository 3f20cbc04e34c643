"""Continual learning: methods on a sequence of tasks, each tested on all tasks after each."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.utils import ModulesToSaveWrapper

from bayeslora.adapters import RandomLoraConfig
from bayeslora.deploy.export import export_run
from bayeslora.experiments.comparison.cells import cell_of
from bayeslora.experiments.comparison.executors.local import device_in_words
from bayeslora.experiments.comparison.growth import without_storage
from bayeslora.experiments.comparison.items import items_record
from bayeslora.experiments.comparison.records import Header, Items
from bayeslora.experiments.comparison.results import Results
from bayeslora.experiments.sequences.config import ContinualConfig
from bayeslora.methods import Method
from bayeslora.methods.sd_lora import SdLoraConfig
from bayeslora.runs import Run, task_items
from bayeslora.runs.differences import at_defaults
from bayeslora.runs.going_on import train_or_load
from bayeslora.scoring.trunk_cache import TrunkCache
from bayeslora.system.console import Progress, headlines, progress
from bayeslora.system.log import logger
from bayeslora.tasks import Item
from bayeslora.tasks.classes import renamed


def run_continual(config: ContinualConfig, output_dir: str | Path, described: dict[str, Any]) -> Results:
    """Train every row on the sequence with every seed, and test it on all tasks after each, into `results.jsonl`.

    The file is that of `bayeslora.experiments.comparison.Results`: the cell of a row after its k-th task has
    `stage_name` as its task, and the test items of the other tasks as further splits. Each cell is on the disk when it
    ends; a run that was killed goes on in the task that was cut off, at its last checkpoint. Rows and seeds can be
    added later.

    Args:
        config: The rows and tasks.
        output_dir: Folder for the results file and the runs (`runs/<row>-<seed>/<stage>`, run folders).
        described: The config as JSON, for the file's header.

    Returns:
        The results, open for reading.

    Raises:
        ValueError: A task has no training or test items, or the folder holds the results of another config.
        RuntimeError: Rows failed; the message names them.
    """
    continual = _Continual(config, Path(output_dir), described)
    failed = continual.run()
    if failed:
        raise RuntimeError(
            f"{len(failed)} passes failed: {'; '.join(failed)}. The others are in {output_dir}/results.jsonl; run the "
            "same command again to try them once more."
        )
    return Results.read(Path(output_dir) / "results.jsonl")


def stage_name(position: int, title: str) -> str:
    """How the results file names the state after the task at `position` (from 0) of the sequence."""
    return f"{position + 1} {title}"


def split_name(trained: str, tested: str) -> str:
    """How the results file names the test items of the task `tested` after the task `trained`, both by title."""
    return "test" if trained == tested else f"ood:{tested}"


class _Continual:
    def __init__(self, config: ContinualConfig, output: Path, described: dict[str, Any]):
        self.config, self.output = config, output
        # The order of the tasks is part of what was run, and JSON objects are compared without it.
        self.described = without_storage(described) | {"order": list(config.sequence)}
        self.test = {}
        for title, task in config.sequence.items():
            splits = task_items(task)
            if not splits.train or not splits.test:
                raise ValueError(f"task {title!r} needs training and test items to be one of a sequence.")
            self.test[title] = splits.test
        self.cache: TrunkCache | None = None

    def run(self) -> list[str]:
        """All cells; returns what failed."""
        config, failed = self.config, list[str]()
        header = Header.now(self.described, device_in_words(config.model))
        with Results.open(self.output / "results.jsonl", header, at_defaults(config)) as results:
            for record in self._items():
                results.append(record)
            cells = len(config.seeds) * len(config.rows) * len(config.sequence)
            with progress("continual", cells, "cells") as line, headlines():
                for seed, row in product(config.seeds, config.rows):
                    try:
                        self._pass(row, seed, results, line)
                    # One broken method must not cost the others their hours.
                    except Exception as error:
                        logger.exception("%s, seed %d failed", row, seed)
                        failed.append(f"{row}, seed {seed} ({type(error).__name__}: {error})")
        return failed

    def _pass(self, row: str, seed: int, results: Results, line: Progress) -> None:
        """One row through the whole sequence."""
        rate, previous = self.config.train.learning_rate, None
        for position, title in enumerate(self.config.sequence):
            started, stage = time.perf_counter(), stage_name(position, title)
            folder = self.output / "runs" / f"{row}-{seed}".replace("/", "_") / stage
            if results.find(stage, row, seed, rate, "final") is None:
                trained = self._trained(row, title, seed, folder, previous)
                predictions = {
                    split_name(title, other): trained.predict(_as_seen(trained, items))
                    for other, items in self.test.items()
                }
                results.append(cell_of(trained, predictions, stage, row, rate, "final"))
                scores = {other: predictions[split_name(title, other)].metrics() for other in self.test}
                said = "  ".join(f"{other} {metrics['accuracy']:.3f}" for other, metrics in scores.items())
                line.ended(f"{row}, seed {seed}, after {title}: {said}", time.perf_counter() - started)
            else:
                line.skip()
            previous = folder

    def _trained(self, row: str, title: str, seed: int, folder: Path, previous: Path | None) -> Run:
        """The run of a task, trained or, where its folder is finished already, loaded."""
        done = (folder / "metrics.json").is_file()
        start = None if previous is None or done else _start(previous, self.config.rows[row])
        run = self.config.run(row, title, seed, start)
        prepare = _freeze_head if self.config.head == "first" and previous is not None else None
        trained = train_or_load(run, folder, self.cache, prepare=prepare, apart_from=["method.init_from"])
        self.cache = trained.trunk_cache
        return trained

    def _items(self) -> Iterator[Items]:
        for position, title in enumerate(self.test):
            for other, items in self.test.items():
                yield items_record(stage_name(position, title), split_name(title, other), items, labelled=True)


def _as_seen(run: Run, items: list[Item]) -> list[Item]:
    """Items of another task as the run's head, if it has one, sees them: the tasks share its outputs, by position."""
    classes = run.config.task.classes
    return items if classes is None else renamed(items, classes)


def _start(previous: Path, method: Method) -> str:
    """What `init_from` of the next task is: the run before it, or its mean where a posterior cannot go on."""
    if issubclass(method.config_class, SdLoraConfig) or not issubclass(method.config_class, RandomLoraConfig):
        return str(previous.resolve())
    export_run(previous, previous / "mean")
    return str((previous / "mean").resolve())


def _freeze_head(model: PeftModel) -> None:
    """Modules that are trained whole stay as the first task left them."""
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.requires_grad_(False)

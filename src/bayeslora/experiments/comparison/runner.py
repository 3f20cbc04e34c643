"""Running a comparison: what is in the results file already is not computed again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from bayeslora.experiments.comparison.config import CompareConfig
from bayeslora.experiments.comparison.executors import Executor, LocalExecutor
from bayeslora.experiments.comparison.growth import without_storage
from bayeslora.experiments.comparison.items import ComparedItems
from bayeslora.experiments.comparison.planned_cells import PlannedCell, chosen_rate, is_ready, planned_cells
from bayeslora.experiments.comparison.records import Header, Stage
from bayeslora.experiments.comparison.results import Results
from bayeslora.runs.differences import at_defaults
from bayeslora.system.console import Progress, headlines, progress

__all__ = ["compare"]

logger = logging.getLogger("bayeslora")


def compare(
    config: CompareConfig,
    output_dir: str | Path,
    described: dict[str, Any],
    executor: Callable[[CompareConfig, Path, ComparedItems], Executor] = LocalExecutor,
    stages: Sequence[Stage] = ("selection", "final"),
) -> Results:
    """Train, select and test every row of every task with every seed, into `output_dir/results.jsonl`.

    Each cell is on the disk when it ends; a comparison that was killed goes on where it stopped. A cell that fails is
    logged and left out, and the others go on; the next call tries it again.

    Args:
        config: The comparison.
        output_dir: Folder for the results file and the runs (adapters, checkpoints) that it is made of.
        described: The config as JSON, for the file's header.
        executor: Where cells are computed: one after the other here, or `partial(RayExecutor, address=...)`.
        stages: Only the cells of these; "selection" alone is a sweep of learning rates, without the test split.

    Returns:
        The results, open for reading.

    Raises:
        ValueError: The folder holds the results of another config.
        RuntimeError: Cells failed; the message names them.
    """
    output = Path(output_dir)
    items = ComparedItems(config, stages)
    with executor(config, output, items) as workers:
        header = Header.now(without_storage(described), workers.device)
        with Results.open(output / "results.jsonl", header, at_defaults(config)) as results:
            for task in config.tasks:
                for record in items.records(task):
                    results.append(record)
            failed = _compute_missing(planned_cells(config, stages), config, results, workers)
    if failed:
        raise RuntimeError(
            f"{len(failed)} cells failed: {'; '.join(failed)}. The others are in {output / 'results.jsonl'}; run the "
            "same command again to try them once more."
        )
    return Results.read(output / "results.jsonl")


def _compute_missing(
    wanted: Iterable[PlannedCell], config: CompareConfig, results: Results, workers: Executor
) -> list[str]:
    """Have the wanted cells computed that the file lacks; returns what failed."""
    waiting = list(wanted)
    with progress("compare", len(waiting), "cells") as line, headlines():
        # A comparison is one process, the main one.
        assert line is not None
        return _compute(waiting, config, results, workers, line)


def _compute(
    waiting: list[PlannedCell], config: CompareConfig, results: Results, workers: Executor, line: Progress
) -> list[str]:
    running, failed = set[PlannedCell](), list[str]()
    while waiting or running:
        # A cell with its rate known takes the place of the one that waited.
        while len(running) < workers.slots and (planned := _next_ready(waiting, running)) is not None:
            waiting.remove(planned)
            try:
                rate = chosen_rate(planned, config, results)
            except RuntimeError as error:
                failed.append(f"{planned} ({type(error).__name__}: {error})")
                line.ended(f"{planned}: failed", 0)
                continue
            if results.find(planned.task, planned.title, planned.seed, rate, planned.stage) is not None:
                line.skip()
                continue
            running.add(planned.at(rate))
            workers.submit(planned.at(rate))
        if not running:
            continue
        line.note(str(min(running, key=str)))
        outcome = workers.next()
        running.remove(outcome.planned)
        # A kill in the middle of the write can have left the first of the cells that belong together.
        results.append(*(cell for cell in outcome.cells if results.find(*cell.key) is None))
        if outcome.failure is not None:
            logger.error("%s failed\n%s", outcome.planned, outcome.traceback)
            failed.append(f"{outcome.planned} ({outcome.failure})")
        line.ended(f"{outcome.planned}: {outcome.scores if outcome.failure is None else 'failed'}", outcome.seconds)
    return failed


def _next_ready(waiting: list[PlannedCell], running: set[PlannedCell]) -> PlannedCell | None:
    """The first cell that need not wait for a selection."""
    open_cells = {*waiting, *running}
    return next((planned for planned in waiting if is_ready(planned, open_cells)), None)

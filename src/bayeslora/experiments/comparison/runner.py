"""Running a comparison: what is in the results file already is not computed again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bayeslora.experiments.comparison.cells import Outcome
from bayeslora.experiments.comparison.config import CompareConfig
from bayeslora.experiments.comparison.executors import Executor, LocalExecutor
from bayeslora.experiments.comparison.growth import without_storage
from bayeslora.experiments.comparison.items import ComparedItems
from bayeslora.experiments.comparison.planned_cells import (
    PlannedCell,
    chosen_length_power,
    chosen_rate,
    further_cell,
    is_ready,
    planned_cells,
)
from bayeslora.experiments.comparison.records import Header, Stage
from bayeslora.experiments.comparison.results import Results
from bayeslora.runs.differences import at_defaults
from bayeslora.system.console import Progress, headlines, progress
from bayeslora.system.log import logger


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
        return _Work(config, results, workers, line, waiting).done()


@dataclass
class _Work:
    """Cells to compute, in their order as far as they can be."""

    config: CompareConfig
    results: Results
    workers: Executor
    line: Progress
    waiting: list[PlannedCell]
    running: set[PlannedCell] = field(default_factory=set)
    failed: list[str] = field(default_factory=list)

    def done(self) -> list[str]:
        """Compute them all; returns what failed."""
        while self.waiting or self.running:
            while len(self.running) < self.workers.slots and (planned := self._next_ready()) is not None:
                self.waiting.remove(planned)
                self._begin(planned)
            if self.running:
                self.line.note(str(min(self.running, key=str)))
                self._end(self.workers.next())
        return self.failed

    def _next_ready(self) -> PlannedCell | None:
        """The first cell that need not wait for a selection."""
        open_cells = {*self.waiting, *self.running}
        return next((planned for planned in self.waiting if is_ready(planned, open_cells)), None)

    def _begin(self, planned: PlannedCell) -> None:
        """A cell with all that was chosen for it takes the place of the one that waited."""
        try:
            rate = chosen_rate(planned, self.config, self.results)
            chosen = planned.at(rate, chosen_length_power(planned, self.config, self.results))
        except RuntimeError as error:
            self.failed.append(f"{planned} ({type(error).__name__}: {error})")
            self.line.ended(f"{planned}: failed", 0)
            return
        if self._is_there(chosen):
            self.line.skip()
            self._go_on(chosen)
            return
        self.running.add(chosen)
        self.workers.submit(chosen)

    def _is_there(self, planned: PlannedCell) -> bool:
        """Whether the file has the cell, and of a final one all controls: those may be newer than it."""
        row, rate = self.config.rows[planned.title], planned.learning_rate
        titles = row.titles(planned.title) if planned.stage == "final" else [planned.title]
        assert rate is not None
        keys = ((planned.task, title, planned.seed, rate, planned.stage) for title in titles)
        return all(self.results.find(*key) is not None for key in keys)

    def _end(self, outcome: Outcome) -> None:
        planned = outcome.planned
        self.running.remove(planned)
        # A kill in the middle of the write can have left the first of the cells that belong together.
        self.results.append(*(cell for cell in outcome.cells if self.results.find(*cell.key) is None))
        if outcome.failure is not None:
            logger.error("%s failed\n%s", planned, outcome.traceback)
            self.failed.append(f"{planned} ({outcome.failure})")
        rate = f", learning rate {planned.learning_rate:g}" if self.config.has_rate(planned.title) else ""
        self.line.ended(f"{planned}{rate}: {outcome.scores if outcome.failure is None else 'failed'}", outcome.seconds)
        self._go_on(planned)

    def _go_on(self, ended: PlannedCell) -> None:
        """The selection of a row goes on beyond its grid while the best rate is at an edge."""
        further = further_cell(ended, self.config, self.results, {*self.waiting, *self.running})
        if further is None:
            return
        self.line.write(
            f"{ended.task}, {ended.title}: the best learning rate is at the edge of those tried; trying "
            f"{further.learning_rate:g}"
        )
        self.line.grow()
        self.waiting.insert(0, further)

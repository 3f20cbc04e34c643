"""Running a comparison: what is in the results file already is not computed again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from bayeslora.comparison.config import CompareConfig
from bayeslora.comparison.executors import Executor, LocalExecutor
from bayeslora.comparison.items import ComparedItems
from bayeslora.comparison.places import Place, chosen_rate, is_ready, wanted_places
from bayeslora.comparison.results import Header, Results, Stage

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
        header = Header.now(_defining(described), workers.device)
        with Results.open(output / "results.jsonl", header) as results:
            for task in config.tasks:
                for record in items.records(task):
                    results.append(record)
            failed = _compute_missing(wanted_places(config, stages), config, results, workers)
    if failed:
        raise RuntimeError(
            f"{len(failed)} cells failed: {'; '.join(failed)}. The others are in {output / 'results.jsonl'}; run the "
            "same command again to try them once more."
        )
    return Results.read(output / "results.jsonl")


def _compute_missing(wanted: Iterable[Place], config: CompareConfig, results: Results, workers: Executor) -> list[str]:
    """Have the wanted cells computed that the file lacks; returns what failed."""
    waiting, running = list(wanted), set[Place]()
    progress, failed = _Progress(len(waiting)), list[str]()
    while waiting or running:
        # A place with its rate known takes the place of the one that waited.
        while len(running) < workers.slots and (place := _next_ready(waiting, running)) is not None:
            waiting.remove(place)
            try:
                rate = chosen_rate(place, config, results)
            except RuntimeError as error:
                failed.append(f"{place} ({type(error).__name__}: {error})")
                progress.step(str(place), "failed")
                continue
            if results.find(place.task, place.title, place.seed, rate, place.stage) is not None:
                progress.skip()
                continue
            running.add(place.at(rate))
            workers.submit(place.at(rate))
        if not running:
            continue
        outcome = workers.next()
        running.remove(outcome.place)
        for cell in outcome.cells:
            results.append(cell)
        if outcome.failure is not None:
            logger.error("%s failed\n%s", outcome.place, outcome.traceback)
            failed.append(f"{outcome.place} ({outcome.failure})")
        progress.step(str(outcome.place), outcome.scores if outcome.failure is None else "failed", outcome.seconds)
    return failed


def _next_ready(waiting: list[Place], running: set[Place]) -> Place | None:
    """The first place that need not wait for a selection."""
    open_places = {*waiting, *running}
    return next((place for place in waiting if is_ready(place, open_places)), None)


_STORAGE = ("cache_trunk_folder", "cache_trunk_limit")
"""Where the trunk cache lies and how large it may grow define nothing, and may differ when a comparison goes on."""

_ADDED_LATER = {"quantization": "none"}
"""Options that older files do not have, with the value that these files were made with."""


def _defining(described: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that the results depend on."""
    result = dict(described)
    if isinstance(train := described.get("train"), dict):
        result["train"] = {name: value for name, value in train.items() if name not in _STORAGE}
    if isinstance(model := described.get("model"), dict):
        later = _ADDED_LATER.items()
        result["model"] = {name: value for name, value in model.items() if (name, value) not in later}
    return result


class _Progress:
    """Logs each cell and an estimate of the time left, from how fast those so far were computed."""

    def __init__(self, total: int, log: Callable[..., None] = logger.info, clock: Callable[[], float] = time.monotonic):
        self.total, self.done, self.computed = total, 0, 0
        self.log, self.clock, self.started = log, clock, clock()

    def skip(self) -> None:
        """One cell was in the file."""
        self.done += 1

    def step(self, name: str, line: str, seconds: float = 0.0) -> None:
        """One cell has ended."""
        self.done += 1
        self.computed += 1
        left = (self.total - self.done) * (self.clock() - self.started) / self.computed
        self.log("[%d/%d] %s: %s  (%.0f s; about %s left)", self.done, self.total, name, line, seconds, _words(left))


def _words(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"

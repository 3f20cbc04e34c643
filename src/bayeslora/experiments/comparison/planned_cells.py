"""Which cells a comparison is made of, in which order, and when each can be computed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from bayeslora.experiments.comparison.config import CompareConfig
from bayeslora.experiments.comparison.records import Stage
from bayeslora.experiments.comparison.results import Results
from bayeslora.experiments.comparison.selection import best_rate

__all__ = ["PlannedCell", "chosen_rate", "is_ready", "planned_cells"]


@dataclass(frozen=True)
class PlannedCell:
    """One cell that is wanted."""

    task: str
    title: str
    seed: int
    learning_rate: float | None
    """None: the one that selection finds."""
    stage: Stage

    def __str__(self) -> str:
        return f"{self.task}, {self.title}, {self.stage}, seed {self.seed}"

    def at(self, learning_rate: float) -> PlannedCell:
        """This one with its learning rate known."""
        return replace(self, learning_rate=learning_rate)


def planned_cells(config: CompareConfig, stages: Sequence[Stage] = ("selection", "final")) -> Iterator[PlannedCell]:
    """Selection first, then seed by seed, so that a comparison that is stopped early has whole seeds.

    A row with one learning rate has nothing to select, unless selection is all that is wanted.
    """
    only_selection = "final" not in stages
    for task in config.tasks:
        for title in config.rows:
            grid = config.grid(title)
            for rate in grid if len(grid) > 1 or only_selection else []:
                yield PlannedCell(task, title, config.seeds[0], rate, "selection")
    for seed in [] if only_selection else config.seeds:
        for task in config.tasks:
            for title in config.rows:
                yield PlannedCell(task, title, seed, None, "final")


def is_ready(planned: PlannedCell, open_cells: Collection[PlannedCell]) -> bool:
    """Whether no selection that `planned` waits for is among the planned cells that have not ended."""
    return planned.stage == "selection" or not any(
        other.stage == "selection" and (other.task, other.title) == (planned.task, planned.title)
        for other in open_cells
    )


def chosen_rate(planned: PlannedCell, config: CompareConfig, results: Results) -> float:
    """The learning rate of a planned cell: its own, or that of its row with the best dev score in the selection.

    Raises:
        RuntimeError: No selection cell of the row could be computed.
    """
    if planned.learning_rate is not None:
        return planned.learning_rate
    grid = config.grid(planned.title)
    if len(grid) == 1:
        return grid[0]
    return best_rate(results, planned.task, planned.title, config.seeds[0], grid, config.select_by)

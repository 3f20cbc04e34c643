"""Which cells a comparison is made of, in which order, and when each can be computed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from bayeslora.experiments.comparison.config import CompareConfig
from bayeslora.experiments.comparison.records import BASE, Stage
from bayeslora.experiments.comparison.results import Results
from bayeslora.experiments.comparison.selection import best_rate, next_rate


@dataclass(frozen=True)
class PlannedCell:
    """One cell that is wanted."""

    task: str
    title: str
    seed: int
    learning_rate: float | None
    """None: the one that selection finds."""
    stage: Stage
    length_power: float | None = None
    """The one that was chosen for the task; None: not yet, or the task's own."""

    def __str__(self) -> str:
        return f"{self.task}, {self.title}, {self.stage}, seed {self.seed}"

    @property
    def chooses_length_power(self) -> bool:
        """Whether it is there for the choice of its task's length power."""
        return (self.title, self.stage) == (BASE, "selection")

    def at(self, learning_rate: float, length_power: float | None = None) -> PlannedCell:
        """This one with what was chosen for it."""
        return replace(self, learning_rate=learning_rate, length_power=length_power)


def planned_cells(config: CompareConfig, stages: Sequence[Stage] = ("selection", "final")) -> Iterator[PlannedCell]:
    """Selection first, then seed by seed, so that a comparison that is stopped early has whole seeds.

    A row with one learning rate has nothing to select, unless selection is all that is wanted. The base model selects
    its task's length power. Further rates beyond a grid come to it as the selection goes on: `further_cell`.
    """
    only_selection = "final" not in stages
    for task in config.tasks:
        for title in config.titles(task):
            grid = config.grid(title)
            chooses = len(config.length_powers(task)) > 1 if title == BASE else len(grid) > 1 or only_selection
            for rate in grid if chooses else []:
                yield PlannedCell(task, title, config.seeds[0], rate, "selection")
    for seed in [] if only_selection else config.seeds:
        for task in config.tasks:
            for title in config.titles(task):
                yield PlannedCell(task, title, seed, None, "final")


def is_ready(planned: PlannedCell, open_cells: Collection[PlannedCell]) -> bool:
    """Whether no selection that `planned` waits for is among the planned cells that have not ended."""
    return not any(_waits_for(planned, other) for other in open_cells)


def _waits_for(planned: PlannedCell, other: PlannedCell) -> bool:
    if other.stage != "selection" or other.task != planned.task or planned.chooses_length_power:
        return False
    return other.chooses_length_power or (planned.stage == "final" and other.title == planned.title)


def chosen_length_power(planned: PlannedCell, config: CompareConfig, results: Results) -> float | None:
    """The length power that was chosen for the task of a planned cell; None where it has its own.

    Raises:
        RuntimeError: The base model could not be evaluated.
    """
    powers = config.length_powers(planned.task)
    if len(powers) < 2 or planned.chooses_length_power:
        return powers[0] if len(powers) == 1 else None
    cell = results.find(planned.task, BASE, config.seeds[0], config.grid(BASE)[0], "selection")
    if cell is None:
        raise RuntimeError(f"no length power could be chosen on {planned.task}.")
    return float(cell.details["length_power"])


def chosen_rate(planned: PlannedCell, config: CompareConfig, results: Results) -> float:
    """The learning rate of a planned cell: its own, or that of its row with the best dev score in the selection.

    Raises:
        RuntimeError: No selection cell of the row could be computed.
    """
    if planned.learning_rate is not None:
        return planned.learning_rate
    if len(grid := config.grid(planned.title)) == 1:
        return grid[0]
    return best_rate(
        results, planned.task, planned.title, config.seeds[0], _tried(planned, config, results), config.select_by
    )


def further_cell(
    planned: PlannedCell, config: CompareConfig, results: Results, open_cells: Collection[PlannedCell]
) -> PlannedCell | None:
    """What the selection of a row goes on with when `planned` has ended: the next rate, if the best is at an edge."""
    grid = config.grid(planned.title)
    still = any(
        (other.stage, other.task, other.title) == ("selection", planned.task, planned.title) for other in open_cells
    )
    if planned.stage != "selection" or still or len(grid) == 1:
        return None
    tried = _tried(planned, config, results)
    if len(tried) - len(grid) >= config.protocol.further_rates:
        return None
    try:
        best = best_rate(results, planned.task, planned.title, config.seeds[0], tried, config.select_by)
    except RuntimeError:
        return None
    rate = next_rate(best, tried)
    return None if rate is None else replace(planned, learning_rate=rate, length_power=None)


def _tried(planned: PlannedCell, config: CompareConfig, results: Results) -> list[float]:
    """The grid of a planned cell's row, and where it may be left the rates beyond it that the file has."""
    grid = config.grid(planned.title)
    if not config.protocol.further_rates:
        return grid
    cells = results.cells("selection", planned.task, planned.title)
    return list(dict.fromkeys([*grid, *(cell.learning_rate for cell in cells if cell.seed == config.seeds[0])]))

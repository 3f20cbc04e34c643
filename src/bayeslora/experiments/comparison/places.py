"""Which cells a comparison is made of, in which order, and when each can be computed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from bayeslora.experiments.comparison.config import CompareConfig
from bayeslora.experiments.comparison.records import Stage
from bayeslora.experiments.comparison.results import Results
from bayeslora.experiments.comparison.selection import best_rate

__all__ = ["Place", "chosen_rate", "is_ready", "wanted_places"]


@dataclass(frozen=True)
class Place:
    """One cell that is wanted."""

    task: str
    title: str
    seed: int
    learning_rate: float | None
    """None: the one that selection finds."""
    stage: Stage

    def __str__(self) -> str:
        return f"{self.task}, {self.title}, {self.stage}, seed {self.seed}"

    def at(self, learning_rate: float) -> Place:
        """This place with its learning rate known."""
        return replace(self, learning_rate=learning_rate)


def wanted_places(config: CompareConfig, stages: Sequence[Stage] = ("selection", "final")) -> Iterator[Place]:
    """Selection first, then seed by seed, so that a comparison that is stopped early has whole seeds.

    A row with one learning rate has nothing to select, unless selection is all that is wanted.
    """
    only_selection = "final" not in stages
    for task in config.tasks:
        for title in config.rows:
            grid = config.grid(title)
            for rate in grid if len(grid) > 1 or only_selection else []:
                yield Place(task, title, config.seeds[0], rate, "selection")
    for seed in [] if only_selection else config.seeds:
        for task in config.tasks:
            for title in config.rows:
                yield Place(task, title, seed, None, "final")


def is_ready(place: Place, open_places: Collection[Place]) -> bool:
    """Whether no selection that `place` waits for is among the places that have not ended."""
    return place.stage == "selection" or not any(
        other.stage == "selection" and (other.task, other.title) == (place.task, place.title) for other in open_places
    )


def chosen_rate(place: Place, config: CompareConfig, results: Results) -> float:
    """The learning rate of a place: its own, or the one of its row's grid with the best dev score of the selection.

    Raises:
        RuntimeError: No selection cell of the row could be computed.
    """
    if place.learning_rate is not None:
        return place.learning_rate
    grid = config.grid(place.title)
    if len(grid) == 1:
        return grid[0]
    return best_rate(results, place.task, place.title, config.seeds[0], grid, config.select_by)

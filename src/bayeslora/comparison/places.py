"""Which cells a comparison is made of, in which order, and when each can be computed."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from bayeslora.comparison.config import CompareConfig
from bayeslora.comparison.results import Results, Stage
from bayeslora.metrics import accuracy, nll

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


def wanted_places(config: CompareConfig) -> Iterator[Place]:
    """Selection first, then seed by seed, so that a comparison that is stopped early has whole seeds."""
    for task in config.tasks:
        for title in config.rows:
            grid = config.grid(title)
            for rate in grid if len(grid) > 1 else []:
                yield Place(task, title, config.seeds[0], rate, "selection")
    for seed in config.seeds:
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
    task, seed = place.task, config.seeds[0]
    labels = results.items(task, "dev").label_array()

    def badness(rate: float) -> tuple[float, ...]:
        cell = results.find(task, place.title, seed, rate, "selection")
        if cell is None:
            return (float("inf"),)
        probabilities = cell.predictions["dev"].padded()
        probabilities /= probabilities.sum(1, keepdims=True)
        loss = nll(probabilities, labels)
        return (loss,) if config.select_by == "nll" else (-accuracy(probabilities, labels), loss)

    best = min(grid, key=badness)
    if badness(best) == (float("inf"),):
        raise RuntimeError(f"no selection cell of {place.title!r} on {task} could be computed.")
    return best

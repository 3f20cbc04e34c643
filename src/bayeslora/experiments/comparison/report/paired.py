"""Differences between two rows item by item, and whether a task tells methods apart at all.

Seeds predict the same items, so what they say of one item is not independent: the difference of an item is first
averaged over the seeds that both rows have, and the standard error is that of the mean over items, of all tasks
together. It holds for these trained adapters and new items; the scatter of the seeds stands in the tables of scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy

from bayeslora.experiments.comparison.records import BASE, TEMPERED
from bayeslora.experiments.comparison.report.rows import Row, TaskRows
from bayeslora.metrics import SMALLEST_PROBABILITY
from bayeslora.report.colours import BASELINE

REQUIRED_Z = 3.0
"""Standard errors by which the best row of an informative task beats the base model with a temperature."""

_PerItem: TypeAlias = Callable[[numpy.ndarray, numpy.ndarray], numpy.ndarray]


@dataclass(frozen=True)
class Difference:
    """A row's mean over items minus another's.

    Attributes:
        mean: NaN where no item is shared.
        error: Standard error of the mean over items.
        items: Items, of all tasks.
        seeds: How many seeds each item is averaged over, by task.
    """

    mean: float
    error: float
    items: int
    seeds: tuple[int, ...]

    @property
    def z(self) -> float:
        """The mean in standard errors; NaN where nothing differs."""
        return self.mean / self.error if self.error > 0 else math.nan

    @property
    def extent(self) -> str:
        """For example "4,600 items x 3 seeds"."""
        least, most = min(self.seeds), max(self.seeds)
        seeds = f"{most}" if least == most else f"{least} to {most}"
        return f"{self.items:,} items x {seeds} seed{'s' if most > 1 else ''}"


def losses(probabilities: numpy.ndarray, labels: numpy.ndarray) -> numpy.ndarray:
    """NLL of each item [items], nats."""
    right = probabilities[numpy.arange(len(labels)), labels]
    return -numpy.log(numpy.maximum(right, SMALLEST_PROBABILITY))


def hits(probabilities: numpy.ndarray, labels: numpy.ndarray) -> numpy.ndarray:
    """Whether the most probable choice of each item is right [items], 0 or 1."""
    return (probabilities.argmax(1) == labels).astype(float)


def difference(tasks: Iterable[TaskRows], title: str, other: str, per_item: _PerItem) -> Difference:
    """The row `title` against the row `other` on the test items of the tasks that have both."""
    parts, seeds = [], []
    for task in tasks:
        rows = {row.title: row for row in task.with_split("test")}
        if title in rows and other in rows and (common := sorted(rows[title].cells.keys() & rows[other].cells)):
            own, others = (mean_over_seeds(task, rows[name], common, per_item) for name in (title, other))
            parts.append(own - others)
            seeds.append(len(common))
    if not parts:
        return Difference(math.nan, math.nan, 0, (0,))
    values = numpy.concatenate(parts)
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return Difference(float(values.mean()), error, len(values), tuple(seeds))


def mean_over_seeds(task: TaskRows, row: Row, seeds: Iterable[int], per_item: _PerItem) -> numpy.ndarray:
    """What `per_item(probabilities, labels)` gives on the test items, averaged over `seeds`."""
    labels, found = task.items["test"].label_array(), row.probabilities("test")
    mean: numpy.ndarray = numpy.mean([per_item(found[seed], labels) for seed in seeds], axis=0)
    return mean


@dataclass(frozen=True)
class Verdict:
    """Whether a task tells methods apart: whether the best row beats the base model with a temperature.

    Attributes:
        best: The row of the lowest NLL among those that are trained.
        difference: Its NLL minus that of the base row.
    """

    best: str
    difference: Difference

    @property
    def informative(self) -> bool:
        """Whether it does, by `REQUIRED_Z` standard errors."""
        return self.difference.z <= -REQUIRED_Z

    def sentence(self, task: str) -> str:
        """What to say of a task that is not informative."""
        found = self.difference
        return (
            f"{task} is not informative: its best row, {self.best}, does not beat the base model with a temperature by "
            f"{REQUIRED_Z:g} standard errors (NLL {found.mean:+.3f} ± {found.error:.3f}, z {found.z:+.1f}). Nothing of "
            "it is in the pooled differences."
        )


def verdict(task: TaskRows) -> Verdict | None:
    """That of a task; None where it has no row of the base model with a temperature, or no other."""
    base = f"{BASE}{TEMPERED}"
    rows = [row for row in task.with_split("test") if row.title not in (BASE, base)]
    if not rows or base not in {row.title for row in task.with_split("test")}:
        return None
    found: Mapping[str, Difference] = {row.title: difference([task], row.title, base, losses) for row in rows}
    best = min(found, key=lambda title: found[title].mean if found[title].items else math.inf)
    return Verdict(best, found[best])


def reference(titles: Iterable[str]) -> str | None:
    """The row that others are held against: plain LoRA, with a temperature if there is one."""
    have = set(titles)
    return next((title for title in (f"{BASELINE}{TEMPERED}", BASELINE) if title in have), None)

"""The rows of a task's tables: the final cells of one method, by seed."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy

from bayeslora.experiments.comparison import Cell, Items, Results
from bayeslora.experiments.comparison.records import TEMPERED
from bayeslora.prediction.temperature import bound_of

_OUTSIDE = "ood:"


@dataclass(frozen=True)
class Row:
    """One method on one task.

    Attributes:
        title: Its name in tables and legends.
        cells: Its final cells by seed, ascending.
    """

    title: str
    cells: dict[int, Cell]

    @property
    def first(self) -> Cell:
        """The cell of the first seed, for what all seeds share."""
        return next(iter(self.cells.values()))

    @property
    def has_temperature(self) -> bool:
        """Whether it is another row's predictions with a temperature: they cost and rank as that row's do."""
        return self.first.derived_from is not None and self.title.endswith(TEMPERED)

    @property
    def reading(self) -> str | None:
        """The link that it was read by, where that is not the one of the comparison."""
        found: str | None = self.first.details.get("reading")
        return found

    def probabilities(self, split: str) -> dict[int, numpy.ndarray]:
        """For each seed that has the split, probabilities [items, choices]."""
        return {
            seed: cell.predictions[split].padded() for seed, cell in self.cells.items() if split in cell.predictions
        }

    def mutual_information(self, split: str) -> dict[int, numpy.ndarray]:
        """For each seed that has the split, mutual information [items], nats."""
        return {
            seed: numpy.asarray(cell.predictions[split].mutual_information)
            for seed, cell in self.cells.items()
            if split in cell.predictions
        }

    def mean(self, value: Callable[[Cell], float | None]) -> float | None:
        """Mean over seeds of something of a cell; None where a seed does not have it."""
        values = [found for cell in self.cells.values() if (found := value(cell)) is not None]
        return float(numpy.mean(values)) if len(values) == len(self.cells) else None


@dataclass(frozen=True)
class TaskRows:
    """What the final cells of a task hold.

    Attributes:
        task: The task trained on.
        rows: In the order of the config.
        items: The items of each split.
        missing: For each method without all seeds, the seeds it lacks.
        left_out: For each row with a temperature at a bound of its search, what its predictions do there, and with
            which seeds. These cells are in no mean.
        readings: Rows that read the same trained adapters by another link, by the name of that link; their titles are
            those of the rows.
    """

    task: str
    rows: list[Row]
    items: dict[str, Items]
    missing: dict[str, list[int]]
    left_out: dict[str, dict[str, list[int]]]
    readings: dict[str, list[Row]] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """The task's name for files and links; a local task is called by its path."""
        return re.sub(r"[^\w.-]+", "-", self.task).strip("-.") or "task"

    @property
    def outside_splits(self) -> list[str]:
        """Out-of-distribution splits."""
        return [split for split in self.items if split.startswith(_OUTSIDE)]

    def read_by(self, link: str) -> TaskRows:
        """The task with the rows of another link."""
        return replace(self, rows=self.readings[link], readings={}, missing={}, left_out={})

    def with_split(self, split: str) -> list[Row]:
        """Rows that have predictions of the split for each of their seeds."""
        return [row for row in self.rows if all(split in cell.predictions for cell in row.cells.values())]


def outside_name(split: str) -> str:
    """The task that an out-of-distribution split is taken from."""
    return split.removeprefix(_OUTSIDE)


def planned(results: Results, part: Literal["tasks", "rows", "seeds"]) -> list[Any]:
    """What the config of the file names; nothing where it is not made as that of `bayeslora compare`."""
    return [entry for entry in results.header.config.get(part, []) if isinstance(entry, str | int)]


def row_order(results: Results) -> list[str]:
    """All rows that the config names or the file has, each with those derived from it behind it."""
    rows = planned(results, "rows")
    tempered = [title for title in rows if results.header.config["rows"][title].get("temperature")]
    bases: dict[str, str | None] = {f"{title}{TEMPERED}": title for title in tempered}
    bases |= {cell.method: cell.derived_from for cell in results.cells()}
    order = list(dict.fromkeys([*rows, *(method for method, base in bases.items() if base is None)]))
    behind = dict.fromkeys(order, 0)
    for method, base in bases.items():
        if method not in order:
            place = order.index(base) + 1 + behind[base] if base in behind else len(order)
            order.insert(place, method)
            if base in behind:
                behind[base] += 1
    return order


def task_rows(results: Results, task: str) -> TaskRows:
    """The rows of a task, what is missing, and what is left out.

    Every row is expected on every task with every seed, those of the file and those that its config names.
    """
    by_title: dict[str, dict[int, Cell]] = {}
    rates = {
        method: {cell.learning_rate for cell in results.cells("final", task, method)}
        for method in results.methods("final", task)
    }
    left_out: dict[str, dict[str, list[int]]] = {}
    for cell in results.cells("final", task):
        several = len(rates[cell.method]) > 1
        title = f"{cell.method} (learning rate {cell.learning_rate:g})" if several else cell.method
        if meaning := bound_of(cell.details):
            left_out.setdefault(title, {}).setdefault(meaning, []).append(cell.seed)
        else:
            by_title.setdefault(title, {})[cell.seed] = cell
    order = row_order(results)
    rows = [Row(title, dict(sorted(cells.items()))) for title, cells in by_title.items()]
    rows.sort(key=lambda row: order.index(row.first.method))
    return TaskRows(
        task=task,
        rows=[row for row in rows if row.reading is None],
        items={split: results.items(task, split) for split in results.splits(task)},
        missing=_missing(results, task, order),
        left_out=left_out,
        readings=_by_reading(rows),
    )


def _by_reading(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        if (link := row.reading) is not None:
            found.setdefault(link, []).append(replace(row, title=row.title.replace(f", {link}", "")))
    return found


def _missing(results: Results, task: str, order: Sequence[str]) -> dict[str, list[int]]:
    cells = results.cells("final")
    seeds = {cell.seed for cell in cells} | set(planned(results, "seeds"))
    done = {method: {cell.seed for cell in cells if (cell.task, cell.method) == (task, method)} for method in order}
    # A task whose own link is the mean per token is not read by it a second time, as other tasks are.
    read_again = {cell.method for cell in cells if cell.details.get("reading")}
    wanted = {method: have for method, have in done.items() if have or method not in read_again}
    return {method: sorted(seeds - have) for method, have in wanted.items() if seeds - have}

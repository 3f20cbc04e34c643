"""What a sequence of tasks has left: scores of every task after every task, and forgetting."""

from __future__ import annotations

from dataclasses import dataclass

import numpy

from bayeslora.experiments.comparison.records import Cell
from bayeslora.experiments.comparison.results import Results
from bayeslora.experiments.sequences.continual import split_name, stage_name
from bayeslora.metrics import summary

METRICS = ("accuracy", "nll", "ece")


@dataclass(frozen=True)
class Passes:
    """The complete passes of one row through the sequence.

    Attributes:
        row: Its title.
        tasks: Titles of the tasks in their order.
        seeds: One for each pass.
        scores: For each metric its matrices `[passes, trained, tested]`: the score on task j after task i.
    """

    row: str
    tasks: list[str]
    seeds: list[int]
    scores: dict[str, numpy.ndarray]

    @classmethod
    def read(cls, results: Results, row: str) -> Passes:
        """Those of a results file; passes that have not ended are left out."""
        tasks = list(results.header.config["order"])
        cells = {(cell.task, cell.seed): cell for cell in results.cells("final", method=row)}
        stages = [stage_name(position, title) for position, title in enumerate(tasks)]
        seeds = [seed for seed in dict.fromkeys(seed for _, seed in cells) if all((s, seed) in cells for s in stages)]
        found = [
            [[_scores(results, cells[stage, seed], split_name(title, other)) for other in tasks]
             for stage, title in zip(stages, tasks, strict=True)]
            for seed in seeds
        ]  # fmt: skip
        shape = (len(seeds), len(tasks), len(tasks), len(METRICS))
        values = numpy.asarray(found, dtype=float).reshape(shape)
        return cls(row, tasks, seeds, {name: values[..., index] for index, name in enumerate(METRICS)})


def average_final(matrix: numpy.ndarray) -> float:
    """Mean score over all tasks after the last one, of a matrix `[trained, tested]`."""
    return float(matrix[-1].mean())


def when_learned(matrix: numpy.ndarray) -> float:
    """Mean score of each task right after it was learned: how well the method learns at all."""
    return float(numpy.diagonal(matrix).mean())


def forgetting(accuracy: numpy.ndarray) -> float:
    """Mean over all tasks but the last of the best earlier accuracy minus the final one (arXiv 1801.10112).

    Args:
        accuracy: `[trained, tested]`, at least two tasks.
    """
    return float((accuracy[:-1, :-1].max(axis=0) - accuracy[-1, :-1]).mean())


def _scores(results: Results, cell: Cell, split: str) -> list[float]:
    scores = summary(cell.predictions[split].normalised(), results.items(cell.task, split).label_array())
    return [scores[name] for name in METRICS]

"""What Bayesian-LoRA was to reach under the fair protocol, and what it reached: pooled, item by item, over cells.

python -m studies.methods.goals.table

Reads the results of the comparisons named in CELLS and writes table.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from bayeslora.experiments.comparison import Results
from bayeslora.experiments.comparison.report.paired import difference, hits, losses, mean_over_seeds
from bayeslora.experiments.comparison.report.rows import Row, TaskRows, task_rows
from bayeslora.metrics import ece_floor, expected_calibration_error
from bayeslora.report.text import markdown_table

FOLDER = Path(__file__).parent
CELLS = ("fair", "fair_tasks", "fair_sst2")
"""Studies whose cells are pooled."""
OURS, MEAN, LORA = (f"{name} + temperature" for name in ("bayesian_lora", "bayesian_lora, one pass", "lora"))
MOST_ERROR = 3.0


@dataclass(frozen=True)
class Goal:
    """`row` is to have an NLL that is at least `share` below that of `other`, by `MOST_ERROR` standard errors."""

    row: str
    other: str
    share: float


GOALS = (
    Goal(OURS, LORA, 0.02),
    Goal(OURS, "ensemble of 3 + temperature", 0.01),
    Goal(OURS, "snapshots + temperature", 0.01),
    Goal(OURS, MEAN, 0.005),
    Goal(OURS, "noise only + temperature", 0.005),
    Goal(MEAN, LORA, 0.01),
    Goal("bayesian_head", LORA, 0.02),
)


def tasks() -> list[TaskRows]:
    """The pooled cells."""
    found = [Results.read(FOLDER.parent / study / "results.jsonl") for study in CELLS]
    return [task_rows(results, name) for results in found for name in results.tasks()]


def rows_of(task: TaskRows) -> dict[str, Row]:
    """Its rows by title."""
    return {row.title: row for row in task.rows}


def over_seeds(task: TaskRows, title: str, value: Callable[[numpy.ndarray, numpy.ndarray], Any]) -> numpy.ndarray:
    """`value(probabilities, labels)` of a row on the test items, averaged over all its seeds."""
    row = rows_of(task)[title]
    return mean_over_seeds(task, row, row.cells, value)


def mean_nll(cells: list[TaskRows], title: str, other: str) -> float:
    """NLL of the row `other`, averaged over items and seeds of the tasks that have both."""
    both = [task for task in cells if {title, other} <= rows_of(task).keys()]
    values = [over_seeds(task, other, losses) for task in both]
    return float(numpy.concatenate(values).mean())


def goal_row(cells: list[TaskRows], goal: Goal) -> list[str]:
    """Its line of the table."""
    found = difference(cells, goal.row, goal.other, losses)
    share = found.mean / mean_nll(cells, goal.row, goal.other)
    reached = share <= -goal.share and found.z <= -MOST_ERROR
    return [
        f"{goal.row} against {goal.other}",
        f"-{goal.share:.1%}, z -{MOST_ERROR:g}",
        f"{share:+.1%}",
        f"{found.mean:+.4f} ± {found.error:.4f}",
        f"{found.z:+.1f}",
        found.extent,
        "met" if reached else "missed",
    ]


def eces(cells: list[TaskRows]) -> Iterator[list[str]]:
    """ECE of LoRA and of ours with a temperature, of each cell, beside the floor of ours."""
    for task in cells:
        lora, ours = (float(over_seeds(task, title, expected_calibration_error)) for title in (LORA, OURS))
        floor = float(over_seeds(task, OURS, lambda probabilities, _: ece_floor(probabilities)))
        met = "met" if ours <= lora and ours <= 1.3 * floor else "missed"
        yield [task.slug, f"{lora:.3f}", f"{ours:.3f}", f"{floor:.3f}", f"{ours / floor:.2f}", met]


def outside() -> Iterator[list[str]]:
    """AUROC of telling another task's items from the test items, of adapters trained on ARC-Easy.

    The entropy is that of the mean of one run, the variance ratios are means of all runs.
    """
    first = records("gauss_newton")[0]
    runs = [record for record in records("one_pass") if record["task"].endswith("arc_easy")]
    for place in runs[0]["auroc"]:
        entropy = first[f"auroc:{place}"]["entropy"]
        found = [
            float(numpy.mean([run["auroc"][place][kind] for run in runs])) for kind in ("gauss_newton", "one_pass")
        ]
        met = "met" if found[1] > entropy and (found[1] >= 0.9 or not place.startswith("mmlu")) else "missed"
        yield [place, f"{entropy:.2f}", *(f"{value:.2f}" for value in found), met]


def records(study: str) -> list[dict[str, Any]]:
    """The readings of a study."""
    return [json.loads(line) for line in (FOLDER.parent / study / "readings.jsonl").read_text().splitlines()]


def main() -> None:
    """Write table.md."""
    cells = tasks()
    accuracy = difference(cells, OURS, LORA, hits)
    parts = [
        "# Goals and what was reached",
        "NLL on test items, relative, and in nats item by item.",
        markdown_table(
            ["rows", "goal", "relative", "difference", "z", "items", ""], [goal_row(cells, one) for one in GOALS]
        ),
        "ECE with a temperature; the goal is at most LoRA's and at most 1.3 times the floor.",
        markdown_table(["cell", "LoRA", "Bayesian-LoRA", "floor", "over the floor", ""], eces(cells)),
        f"Accuracy against LoRA's, in points, goal within 0.5: {100 * accuracy.mean:+.2f} ± {100 * accuracy.error:.2f} "
        f"({accuracy.extent}).",
        "AUROC against the test items of ARC-Easy, by what was trained on it: the entropy of the mean, the variance\n"
        "ratio of both posteriors. The goal is above the entropy, and 0.9 on MMLU.",
        markdown_table(["items of", "entropy", "whole posterior", "one pass", ""], outside()),
    ]
    (FOLDER / "table.md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()

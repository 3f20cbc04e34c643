"""table.md beside it from readings.jsonl: what one pass loses against the whole posterior, in the mean of the runs.

python studies/methods/one_pass/table.py
"""

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any, TypeAlias

from bayeslora.report.text import markdown_table

FOLDER = Path(__file__).parent
Cells: TypeAlias = dict[str, list[dict[str, Any]]]
"""The readings of each task."""
READINGS = {"mean": "mean", "gauss_newton": "whole posterior", "one_pass": "one pass"}


def main() -> None:
    cells: Cells = defaultdict(list)
    for line in (FOLDER / "readings.jsonl").read_text().splitlines():
        record = json.loads(line)
        cells[record["task"].removeprefix("../shared/data/")].append(record)
    parts = [
        "# One plain pass against the whole posterior",
        "Means of the runs of a task. ECE in brackets. Within: the distance of one pass from the whole posterior.",
        scores(cells),
        "Rank correlation with the whole posterior, and AUROC of the variance ratio against the test items:",
        uncertainties(cells),
        "Seconds of one core, for an item of the first run of a task, and of the fit over those of the training:",
        seconds(cells),
    ]
    (FOLDER / "table.md").write_text("\n\n".join(parts) + "\n")


def scores(cells: Cells) -> str:
    """NLL and ECE of each reading, without and with a temperature."""
    rows = []
    for task, records in cells.items():
        for title, part in {"1": "at_1", "of dev items": "with_temperature"}.items():
            values = {
                name: [mean(record[name][part][score] for record in records) for score in ("nll", "ece")]
                for name in READINGS
            }
            (whole_nll, whole_ece), (nll, ece) = values["gauss_newton"], values["one_pass"]
            within = f"{100 * (nll / whole_nll - 1):+.2f} % ({ece - whole_ece:+.3f})"
            texts = (f"{nll:.3f} ({ece:.3f})" for nll, ece in values.values())
            rows.append([f"{task} ({len(records)})", title, *texts, within])
    return markdown_table(["task (runs)", "temperature", *READINGS.values(), "within"], rows)


def uncertainties(cells: Cells) -> str:
    """By task and place: correlation of mutual information and of the variance ratio, AUROC of both posteriors."""
    rows = []
    for task, records in cells.items():
        for place in records[0]["rank_correlation"]["mutual_information"]:
            numbers = [
                mean(record["rank_correlation"][name][place] for record in records)
                for name in ("mutual_information", "variance_ratio")
            ]
            if place in records[0]["auroc"]:
                numbers += [
                    mean(record["auroc"][place][name] for record in records) for name in ("gauss_newton", "one_pass")
                ]
            rows.append([task, place, *(f"{number:.2f}" for number in numbers), *[""] * (4 - len(numbers))])
    heads = ("task", "items of", "mutual information", "variance ratio", "AUROC, whole posterior", "AUROC, one pass")
    return markdown_table(heads, rows)


def seconds(cells: Cells) -> str:
    """By task: of an item by each reading, and of both fits."""
    rows = []
    for task, records in cells.items():
        times = records[0]["seconds_per_item"]
        fits = [
            mean(record["fit_seconds"][name] / record["train_seconds"] for record in records)
            for name in ("gauss_newton", "one_pass")
        ]
        rows.append([task, *(f"{times[name]:.4f}" for name in READINGS), *(f"{fit:.2f}" for fit in fits)])
    items = (f"{title}, an item" for title in READINGS.values())
    return markdown_table(["task", *items, "fit, whole posterior", "fit, one pass"], rows)


if __name__ == "__main__":
    main()

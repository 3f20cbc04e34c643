"""Table of `measure.py`'s cells: means over the draws, and the NLL of each reading less that of the announced one.

python -m studies.decisions.reading.table studies/decisions/reading/results.jsonl studies/decisions/reading/table.md
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from bayeslora.report.text import markdown_table

USUAL = "announced"
Rows = list[dict[str, Any]]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def against(rows: Rows, usual: Rows) -> str:
    """The announced reading's NLL less that of `rows`: mean and standard error over items, of the mean over draws."""
    pairs = [(one["each"], other["each"]) for one, other in zip(usual, rows, strict=True)]
    items = [mean([one[item] - other[item] for one, other in pairs]) for item in range(len(pairs[0][0]))]
    middle = mean(items)
    error = math.sqrt(mean([(value - middle) ** 2 for value in items]) / len(items))
    return f"{middle:+.3f} ± {error:.3f} (z {middle / error:+.1f})"


def lines(rows: Rows) -> list[list[str]]:
    found = []
    for task, size in dict.fromkeys((row["task"], row["records"]) for row in rows):
        own = [row for row in rows if (row["task"], row["records"]) == (task, size)]
        usual = [row for row in own if row["reading"] == USUAL]
        for reading in dict.fromkeys(row["reading"] for row in own):
            part = [row for row in own if row["reading"] == reading]
            scores = [f"{mean([row[name] for row in part]):.3f}" for name in ("accuracy", "nll")]
            found.append([task, str(size), reading, *scores, "" if reading == USUAL else against(part, usual)])
    return found


def main(results: Path, output: Path) -> None:
    rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    heads = ["task", "records", "reading", "accuracy", "NLL", "announced less this"]
    output.write_text(markdown_table(heads, lines(rows)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""Table of `measure.py`'s cells: each method at its chosen rate, and its NLL against the frozen heads, item by item.

python -m studies.decisions.adapted.table studies/decisions/adapted/results.jsonl
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch

from bayeslora.metrics.calibration import expected_calibration_error


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def ece(row: dict[str, Any]) -> float:
    top, right = torch.tensor(row["test_confidence"]), torch.tensor(row["test_right"])
    return expected_calibration_error(torch.stack([top, 1 - top], 1), 1 - right)


def best_rate(rows: list[dict[str, Any]]) -> float | None:
    """That of the lowest NLL on dev."""
    rate: float | None = min(rows, key=lambda row: mean(row["dev_nll"]))["learning_rate"]
    return rate


def chosen(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those at the rate of the lowest NLL on dev in the first draw."""
    rate = best_rate([row for row in rows if row["draw"] == 0])
    return [row for row in rows if row["learning_rate"] == rate]


def mean_of_posterior(row: dict[str, Any]) -> dict[str, Any]:
    """The row of an answer by the posterior's mean in one pass, in place of its draws."""
    parts = {f"test_{name}": row[f"test_mean_{name}"] for name in ("nll", "right", "confidence")}
    return row | parts | {"method": f"{row['method']}, its mean"}


def against(rows: list[dict[str, Any]], base: list[dict[str, Any]]) -> str:
    """Mean difference of NLL and its standard error over test items, each averaged over the draws that both have."""
    other = {row["draw"]: row["test_nll"] for row in base}
    pairs = [(row["test_nll"], other[row["draw"]]) for row in rows if row["draw"] in other]
    items = [mean([own[item] - theirs[item] for own, theirs in pairs]) for item in range(len(pairs[0][0]))]
    middle = mean(items)
    error = math.sqrt(mean([(value - middle) ** 2 for value in items]) / len(items))
    return f"{middle:+.3f} ± {error:.3f} (z {middle / error:+.1f})" if error else "-"


def main(path: Path) -> None:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows += [mean_of_posterior(row) for row in rows if "test_mean_nll" in row]
    print("| records | method | rate | draws | accuracy | NLL | ECE | NLL against frozen | fit, seconds |")
    print("|---|---|---|---|---|---|---|---|---|")
    for size in sorted({row["records"] for row in rows}):
        of_size = [row for row in rows if row["records"] == size]
        frozen = [row for row in of_size if row["method"] == "frozen"]
        for method in dict.fromkeys(row["method"] for row in of_size):
            own = chosen([row for row in of_size if row["method"] == method])
            shown = [f"{mean([mean(row[f'test_{name}']) for row in own]):.3f}" for name in ("right", "nll")]
            shown += [f"{mean([ece(row) for row in own]):.3f}", against(own, frozen)]
            shown += [f"{mean([row['fit_seconds'] for row in own]):.0f}"]
            rate = own[0]["learning_rate"]
            print(
                "| "
                + " | ".join([str(size), method, "-" if rate is None else f"{rate:g}", str(len(own)), *shown])
                + " |"
            )
    print("\nOn dev, in the first draw:")
    for row in (row for row in rows if row["draw"] == 0 and row["learning_rate"] and "mean" not in row["method"]):
        print(f"{row['records']} records, {row['method']}, {row['learning_rate']:g}: {mean(row['dev_nll']):.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""A sweep as a Markdown table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bayeslora.report.text import MISSING, markdown_table, plus_minus


def sweep_table(record: Mapping[str, Any]) -> str:
    """For each task a table of its rows, and below it what to do where the best rate is at the edge of the grid."""
    tasks = dict.fromkeys(row["task"] for row in record["rows"])
    return "\n\n".join(_table(record, task) for task in tasks)


def _table(record: Mapping[str, Any], task: str) -> str:
    rows = [row for row in record["rows"] if row["task"] == task]
    heads = ["row", "best rate", "dev accuracy", "dev NLL", "dev ECE", "rates", "diverged"]
    heads += ["lambda_max", "1 / lambda_max", f"rate by lambda_max of {rows[0]['row']}"]
    lines = [f"{task}: chosen by dev {record['select_by']}, seed {record['seed']}", ""]
    lines.append(markdown_table(heads, [list(_entries(row)) for row in rows]))
    notes = [_note(row) for row in rows if row["best"] is None or row["edge"] is not None]
    return "\n".join(lines + (["", *notes] if notes else []))


def _entries(row: Mapping[str, Any]) -> Iterator[str]:
    best = next((point for point in row["points"] if point["learning_rate"] == row["best"]), None)
    yield row["row"]
    yield _number(row["best"])
    for name in ("accuracy", "nll", "ece"):
        yield plus_minus(None if best is None else best[name])
    yield str(len(row["points"]))
    yield str(sum(point["diverged"] for point in row["points"]))
    for name in ("largest_eigenvalue", "hint", "relative_hint"):
        yield _number(row[name])


def _note(row: Mapping[str, Any]) -> str:
    if row["best"] is None:
        return f"- {row['row']}: every rate diverged. {row['remedy']}"
    return (
        f"- {row['row']}: the best rate {row['best']:g} is the {row['edge']} that was tried, so a better one may lie "
        f"beyond it. {row['remedy']}"
    )


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3g}"

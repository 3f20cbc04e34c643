"""The table of finished cells, with seconds over those of sysone in the same cell and the same run.

python -m studies.decisions.peers.table studies/decisions/peers/cells.jsonl studies/decisions/peers/table.md
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bayeslora.report.text import markdown_table

CELL = ("task", "condition", "records", "draw")
SCORES = ("accuracy", "nll", "ece", "ece_floor", "aurc", "coverage_at_5")
SECONDS = ("fit_seconds", "predict_seconds")
PEER = "sysone"


def lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Lines of the table, in the order of the cells."""
    peers = {cell_of(row): row for row in rows if row["system"] == PEER}
    ratios = [f"{name} over sysone's" for name in SECONDS]
    yield "| " + " | ".join([*CELL, "system", *SCORES, *SECONDS, *ratios, "flips"]) + " |"
    yield "|---" * (len(CELL) + len(SCORES) + 2 * len(SECONDS) + 2) + "|"
    for row in rows:
        peer = peers.get(cell_of(row))
        cells = [str(row[name]) for name in (*CELL, "system")]
        cells += [f"{row[name]:.3f}" for name in SCORES] + [f"{row[name]:.2f}" for name in SECONDS]
        cells += ["" if peer is None else f"{row[name] / peer[name]:.3f}" for name in SECONDS]
        yield "| " + " | ".join([*cells, f"{row['flips']:.3f}" if "flips" in row else ""]) + " |"


def means(rows: list[dict[str, Any]]) -> str:
    """Scores of the cells that have several draws of the records, in the mean over these."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((*(row[name] for name in CELL[:-1]), row["system"]), []).append(row)
    table = [
        [
            *map(str, key),
            str(len(members)),
            *(f"{sum(row[name] for row in members) / len(members):.3f}" for name in SCORES),
        ]
        for key, members in groups.items()
        if len(members) > 1
    ]
    return markdown_table([*CELL[:-1], "system", "draws", *SCORES], table)


def cell_of(row: dict[str, Any]) -> tuple[Any, ...]:
    return (*(row[name] for name in CELL), row.get("run"))


def main() -> None:
    source, output = map(Path, sys.argv[1:])
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    newest = {(*(row[name] for name in CELL), row["system"]): row for row in rows}
    every = [*newest.values()]
    output.write_text("\n".join([*lines(every), "", means(every)]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

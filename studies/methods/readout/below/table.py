"""table.md beside it from results.jsonl, and chosen.md: each cell at the rate that dev chose.

python -m studies.methods.readout.below.table

Differences are to the frozen head on the same items: each item's mean over the seeds first, then mean and z over items.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bayeslora.report.text import markdown_table
from studies.methods.readout.below.measure import BEFORE

FOLDER = Path(__file__).parent
GROUP = ("task", "train_items", "method", "targets", "prior", "learning_rate", "row")
FROZEN = "frozen head"
SHOWN = {"Lora": ("head", "head, mean with frozen"), "BayesianLora": ("head, mean with frozen", "head, 4 draws")}
"""Rows of chosen.md."""
TEST = ["accuracy", "NLL", "ECE (floor)", "against (z)"]
POOLED = 478
"""Training items of a cell that counts in the means over cells."""

Cell = dict[str, Any]
Cells = dict[tuple[Any, ...], dict[str, list[Cell]]]
"""By `GROUP`, then by split, one for each seed."""


def main() -> None:
    cells: Cells = {}
    for line in (FOLDER / "results.jsonl").read_text().splitlines():
        cell = BEFORE | json.loads(line)
        cells.setdefault(tuple(cell[name] for name in GROUP), {}).setdefault(cell["split"], []).append(cell)
    write(
        "table.md",
        "Adapters below a head",
        "The heads' prior and temperature are the frozen model's, or were chosen on the adapted layers.",
        ["task", "method, rate", "prior", "row", "seeds", "dev NLL", "against (z)", *TEST],
        [row_of(group, cells) for group in cells],
    )
    write(
        "chosen.md",
        "Adapters below a head, at the rate that dev chose",
        "LoRA and Bayesian-LoRA of q and v, the frozen model's prior. For each row the rate has the least dev NLL of"
        "\nthe first seed. Cells of one task share their test items, so the z of all together is a little too large.",
        ["task", "method", "row", "rate", "seeds", *TEST, "less"],
        list(chosen_rows(cells)),
    )


def write(name: str, title: str, also: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    lines = [
        f"# {title}",
        "",
        "NLL in nats; against the frozen head on the same items: mean and z by item, of the mean over the seeds.",
        "Below 0 is better.",
        also,
        "",
    ]
    lines.append(markdown_table(header, rows))
    (FOLDER / name).write_text("\n".join(lines) + "\n")


def row_of(group: tuple[Any, ...], cells: Cells) -> list[str]:
    task, items, method, targets, prior, rate, row = group
    dev = cells[group]["dev"]
    numbers = [
        f"{task} {items}",
        f"{method} of {targets}, {rate:g}",
        prior,
        row,
        str(len(dev)),
        f"{mean(dev, 'nll'):.3f}",
    ]
    return [*numbers, against(differences(group, "dev", cells)), *tested(group, cells)]


def tested(group: tuple[Any, ...], cells: Cells) -> list[str]:
    test = cells[group]["test"]
    scores = [f"{mean(test, name):.3f}" for name in ("accuracy", "nll")]
    ece = f"{mean(test, 'ece'):.3f} ({mean(test, 'ece_floor'):.3f})"
    return [*scores, ece, against(differences(group, "test", cells))]


def chosen_rows(cells: Cells) -> Iterable[list[str]]:
    """Of each cell, and of the cells with many items together: their items pooled, and the mean of their shares."""
    for method, names in SHOWN.items():
        for row in names:
            groups = chosen(method, row, cells)
            for group in groups:
                task, items, *_, rate, _ = group
                start = [f"{task} {items}", method, row, f"{rate:g}", str(len(cells[group]["test"]))]
                yield [*start, *tested(group, cells), f"{share(group, cells):+.1%}"]
            large = [group for group in groups if group[1] >= POOLED]
            pooled = [value for group in large for value in differences(group, "test", cells)]
            less = sum(share(group, cells) for group in large) / len(large)
            own = sum(mean(frozen_of(group, cells), "nll") * len(differences(group, "test", cells)) for group in large)
            title = f"{len(large)} cells, {len(pooled)} items"
            nothing = [""] * (1 + len(TEST))
            yield [
                title,
                method,
                row,
                *nothing,
                against(pooled),
                f"{sum(pooled) / own:+.1%}; mean of the cells {less:+.1%}",
            ]


def chosen(method: str, row: str, cells: Cells) -> list[tuple[Any, ...]]:
    """Of each task and number of items the group whose first seed has the least dev NLL."""
    best: dict[Any, tuple[Any, ...]] = {}
    for group in cells:
        if group[2:5] == (method, "q_proj, v_proj", "frozen") and group[6] == row:
            known = best.setdefault(group[:2], group)
            best[group[:2]] = min(known, group, key=lambda at: cells[at]["dev"][0]["nll"])
    return list(best.values())


def differences(group: tuple[Any, ...], split: str, cells: Cells) -> list[float]:
    """NLL of each item less that of the frozen head on the same training items, means over the seeds and draws."""
    frozen = {_trained(cell): cell["log_probabilities"] for cell in cells[(*group[:-1], FROZEN)][split]}
    of_seeds = [
        [other - own for own, other in zip(cell["log_probabilities"], frozen[_trained(cell)], strict=True)]
        for cell in cells[group][split]
    ]
    return [sum(item) / len(item) for item in zip(*of_seeds, strict=True)]


def _trained(cell: Cell) -> tuple[int, int]:
    return cell["seed"], cell["draw"]


def share(group: tuple[Any, ...], cells: Cells) -> float:
    found = differences(group, "test", cells)
    return sum(found) / len(found) / mean(frozen_of(group, cells), "nll")


def frozen_of(group: tuple[Any, ...], cells: Cells) -> list[Cell]:
    return cells[(*group[:-1], FROZEN)]["test"]


def mean(cells: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(sum(cell[name] for cell in cells) / len(cells))


def against(found: Sequence[float]) -> str:
    """Mean difference and its z."""
    middle = sum(found) / len(found)
    variance = sum((value - middle) ** 2 for value in found) / len(found)
    return f"{middle:+.3f} ({middle / math.sqrt(variance / len(found)):+.1f})" if variance else "0"


if __name__ == "__main__":
    main()

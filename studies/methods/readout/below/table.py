"""table.md beside it from results.jsonl: the means of the seeds, against the frozen head on the same items.

python -m studies.methods.readout.below.table
"""

import json
import math
from collections import defaultdict
from pathlib import Path

FOLDER = Path(__file__).parent
GROUP = ("task", "train_items", "method", "targets", "prior", "learning_rate", "row")
FROZEN = "frozen head"


def main() -> None:
    kept = (FOLDER / "results.jsonl").read_text().splitlines()
    cells = [{"targets": "q_proj, v_proj", "prior": "adapted"} | json.loads(line) for line in kept]
    frozen = {key(cell): cell for cell in cells if cell["row"] == FROZEN}
    groups = defaultdict(list)
    for cell in cells:
        groups[tuple(cell[name] for name in GROUP), cell["split"]].append(cell)
    lines = [
        "# Adapters below a head",
        "",
        "NLL in nats; against the frozen head on the same items (mean and z by item), below 0 is better.",
        "The heads' prior and temperature are the frozen model's, or were chosen on the adapted layers.",
        "",
        "| task | method, rate | prior | row | dev NLL | against (z) | accuracy | NLL | ECE (floor) | against (z) |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for group in dict.fromkeys(group for group, _ in groups):
        task, items, method, targets, prior, rate, row = group
        dev, test = groups[group, "dev"], groups[group, "test"]
        numbers = [
            f"{task} {items}",
            f"{method} of {targets}, {rate:g}",
            prior,
            row,
            f"{mean(dev, 'nll'):.3f}",
            against(dev, frozen),
        ]
        numbers += [f"{mean(test, name):.3f}" for name in ("accuracy", "nll")]
        numbers += [f"{mean(test, 'ece'):.3f} ({mean(test, 'ece_floor'):.3f})", against(test, frozen)]
        lines.append(f"| {' | '.join(numbers)} |")
    (FOLDER / "table.md").write_text("\n".join(lines) + "\n")


def key(cell: dict) -> tuple:
    names = ("task", "train_items", "draw", "method", "targets", "prior", "learning_rate", "seed", "split")
    return tuple(cell[name] for name in names)


def mean(cells: list[dict], name: str) -> float:
    return sum(cell[name] for cell in cells) / len(cells)


def against(cells: list[dict], frozen: dict) -> str:
    """Mean difference of the NLL by item over all cells, and its z."""
    found = [
        other - own
        for cell in cells
        for own, other in zip(cell["log_probabilities"], frozen[key(cell)]["log_probabilities"], strict=True)
    ]
    middle = sum(found) / len(found)
    variance = sum((value - middle) ** 2 for value in found) / len(found)
    return f"{middle:+.3f} ({middle / math.sqrt(variance / len(found)):+.1f})" if variance else "0"


if __name__ == "__main__":
    main()

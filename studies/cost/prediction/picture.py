"""Draw how a prediction's time grows, from the results of `prediction.py --scaling`.

python -m studies.cost.prediction.picture studies/cost/prediction/scaling_cpu.json studies/cost/prediction/scaling.png
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from studies.cost.prediction.measure import SCALING

TITLES = {
    "samples": "samples S",
    "layers": "adapted layers of 30",
    "rank": "rank",
    "batch": "items per batch",
    "length": "tokens per item",
}


def panel(axes: Axes, name: str, rows: dict[str, dict[str, float]]) -> None:
    """Ratio with its quartiles, and the limit, over one axis."""
    values = [int(value) for value in rows]
    found = list(rows.values())
    middle = [row["ratio"] for row in found]
    below = [row["ratio"] - row["lower_quartile"] for row in found]
    above = [row["upper_quartile"] - row["ratio"] for row in found]
    axes.errorbar(values, middle, yerr=[below, above], marker="o", markersize=4, capsize=2, label="measured")
    axes.plot(values, [row["limit"] for row in found], linestyle="--", color="#555555", label="whole passes")
    if name in ("batch", "length", "rank"):
        axes.set_xscale("log", base=2)
    # On a linear axis, labels nearer than a tenth of it run together.
    width = 0.0 if axes.get_xscale() == "log" else (values[-1] - values[0]) / 10
    near = {right for left, right in pairwise(values) if right - left < width}
    axes.set_xticks(values, ["" if value in near else str(value) for value in values])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel(TITLES[name])
    axes.spines[["top", "right"]].set_visible(False)


def draw(record: dict[str, Any], path: Path) -> None:
    """One panel for each thing that was varied."""
    names = [name for name in SCALING if record.get(name)]
    figure = Figure(figsize=(2.6 * len(names), 2.9), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        panel(axes, name, record[name])
    panels[0].set_ylabel("passes of plain LoRA")
    panels[0].legend(fontsize=8, frameon=False)
    chosen = ", ".join(f"{name} {value}" for name, value in record["defaults"].items())
    figure.suptitle(f"Time of a prediction; otherwise {chosen}", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))

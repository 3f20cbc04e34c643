"""Draw price.png, write table.json and print the table of README.md, from what measure.py and ../one_pass measured.

python -m studies.methods.price.picture
"""

import json
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayeslora.report.colours import OUTSIDE_COLOURS
from bayeslora.report.figure import SMALL, plain, png
from studies.methods.price.measure import DRAWS, HERE, SECONDS, SEEDS, read_rows

ONE_PASS = HERE.parent / "one_pass" / "readings.jsonl"
HEADS = HERE.parent / "readout" / "seconds.json"
TITLES = {
    "base": "base",
    "likelihood readout": "likelihood readout",
    "bayesian_head": "head",
    "lora": "LoRA",
    "ensemble of the loras": "ensemble of 3",
    "bayesian_lora, one pass": "Bayesian-LoRA, mean",
    "student of ten draws": "distilled draws",
    "gauss_newton": "Gauss-Newton",
    "one pass": "OnePass",
} | {f"{number} draws": f"S = {number}" for number in DRAWS}


def rows() -> dict[str, dict[str, Any]]:
    """Passes of plain LoRA, and the mean scores over seeds with and without a temperature, by row."""
    seconds = json.loads(SECONDS.read_text())
    found: dict[str, list[dict[str, Any]]] = {}
    readings = read_rows()
    seeds = [seed for seed in SEEDS if ("student of ten draws", seed) in readings]
    for (name, seed), record in readings.items():
        if seed in seeds:
            found.setdefault(name, []).append(record)
    passes = {name: value / seconds["lora"] for name, value in seconds.items()}
    passes["bayesian_head"] = json.loads(HEADS.read_text())["head"]["predict_ratio"]
    # It reads what the base model's pass computes.
    passes["likelihood readout"] = passes["base"]
    read = [json.loads(line) for line in ONE_PASS.read_text().splitlines()]
    read = [each for each in read if each["seed"] in seeds and each["run"].startswith("arc_easy-bayesian_lora")]
    if read:
        ratios = [each["seconds_per_item"]["one_pass"] / each["seconds_per_item"]["mean"] for each in read]
        found["one pass"] = [each["one_pass"] for each in read]
        passes["one pass"] = fmean(ratios) * passes["bayesian_lora, one pass"]
    return {
        name: {"passes": passes[name], "seeds": len(found[name])}
        | {
            kind: {key: fmean(each[kind][key] for each in found[name]) for key in ("accuracy", "nll", "ece")}
            for kind in KINDS
        }
        for name in TITLES
        if name in found
    }


KINDS = ("at_1", "with_temperature")
ROOM = 0.045
"""Of a panel's height, between two labels that stand above each other."""


def draw(table: dict[str, dict[str, Any]]) -> bytes:
    figure = Figure(figsize=(8.6, 4.6), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True)
    for axes, kind, title in zip(panels, KINDS, ("without a temperature", "with one from dev"), strict=True):
        plain(axes)
        axes.set_title(title, fontsize=SMALL + 1)
        axes.set_xscale("log", base=2)
        axes.set_xlim(0.22, 22)
        axes.set_xlabel("passes of plain LoRA", fontsize=SMALL)
        axes.set_xticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
        panel(axes, {name: (row["passes"], row[kind]["nll"]) for name, row in table.items()})
    panels[0].set_ylabel("NLL, nats per item", fontsize=SMALL)
    return png(figure)


def panel(axes: Axes, points: dict[str, tuple[float, float]]) -> None:
    """Draws as a line, with labels above; what takes about one pass has its label on the left, others on the right."""
    drawn = [points[f"{number} draws"] for number in DRAWS]
    axes.plot(*zip(*drawn, strict=True), "o-", markersize=4, linewidth=1, color=OUTSIDE_COLOURS[0])
    others = {name: point for name, point in points.items() if not name.endswith(" draws") or name[0] == "s"}
    axes.plot(*zip(*others.values(), strict=True), "o", markersize=4, color=OUTSIDE_COLOURS[1])
    low, high = axes.get_ylim()
    free = low
    for name, (x, y) in sorted(others.items(), key=lambda pair: pair[1][1]):
        if x < 1.3:
            free = max(y, free)
            axes.annotate(TITLES[name], (x, y), (0.86, free), ha="right", va="center", fontsize=SMALL - 1)
            free += ROOM * (high - low)
        else:
            axes.annotate(
                TITLES[name], (x, y), (5, -8 if y < drawn[-1][1] else 5), textcoords="offset points", fontsize=SMALL - 1
            )
    for number, point in zip(DRAWS, drawn, strict=True):
        axes.annotate(f"S = {number}", point, (3, 5), textcoords="offset points", fontsize=SMALL - 1)


def main() -> None:
    table = rows()
    (HERE / "table.json").write_text(json.dumps(table, indent=1) + "\n")
    (HERE / "price.png").write_bytes(draw(table))
    print("| row | passes | accuracy | NLL | ECE | with T: NLL | ECE |\n|---|---|---|---|---|---|---|")
    for name, row in sorted(table.items(), key=lambda pair: pair[1]["passes"]):
        one, two = (row[kind] for kind in KINDS)
        numbers = (one["accuracy"], one["nll"], one["ece"], two["nll"], two["ece"])
        print(f"| {TITLES[name]} | {row['passes']:.2f} | " + " | ".join(f"{value:.3f}" for value in numbers) + " |")


if __name__ == "__main__":
    main()

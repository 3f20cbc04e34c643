"""The picture of a sweep: dev scores against the learning rate. Drawn without pyplot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayeslora.report.colours import Style, styles
from bayeslora.report.figure import png

_MEASURES = {"nll": "NLL on dev (nats)", "accuracy": "accuracy on dev"}
_MARGIN = 1.6
"""Factor between the outermost rates and the edges of the axes."""


def sweep_picture(record: Mapping[str, Any]) -> bytes:
    """A PNG with a line for each row, its best rate ringed, diverged runs as crosses, and the hint as a triangle.

    Args:
        record: What sweep.json holds.
    """
    tasks = list(dict.fromkeys(row["task"] for row in record["rows"]))
    look = styles(list(dict.fromkeys(row["row"] for row in record["rows"])))
    figure = Figure(figsize=(10, 0.6 + 3.6 * len(tasks)), layout="constrained")
    panels = figure.subplots(len(tasks), len(_MEASURES), squeeze=False)
    for line, task in zip(panels, tasks, strict=True):
        rows = [row for row in record["rows"] if row["task"] == task]
        for axes, (name, label) in zip(line, _MEASURES.items(), strict=True):
            _draw(axes, rows, name, look)
            axes.set_title(task, fontsize=9)
            axes.set_ylabel(label)
    handles, titles = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, titles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return png(figure)


def _draw(axes: Axes, rows: Sequence[Mapping[str, Any]], name: str, look: Mapping[str, Style]) -> None:
    axes.set_xscale("log")
    rates = [point["learning_rate"] for row in rows for point in row["points"]]
    low, high = min(rates) / _MARGIN, max(rates) * _MARGIN
    axes.set_xlim(low, high)
    for row in rows:
        style = look[row["row"]]
        kept = [point for point in row["points"] if not point["diverged"]]
        places, values = ([point[key] for point in kept] for key in ("learning_rate", name))
        axes.plot(
            places,
            values,
            color=style.colour,
            linestyle=style.line,
            marker=style.marker,
            markersize=4,
            label=row["row"],
        )
        best = [point for point in kept if point["learning_rate"] == row["best"]]
        axes.plot(
            [point["learning_rate"] for point in best],
            [point[name] for point in best],
            linestyle="none",
            marker="o",
            markersize=11,
            markerfacecolor="none",
            markeredgecolor=style.colour,
        )
        # Diverged runs have no score: they stand at the bad edge; the hint stands on the axis of rates.
        worst = 0.97 if name == "nll" else 0.03
        lost = [point["learning_rate"] for point in row["points"] if point["diverged"]]
        _mark(axes, lost, worst, "x", style.colour)
        if row["hint"] is not None:
            inside = low < row["hint"] < high
            marker = "^" if inside else "<" if row["hint"] <= low else ">"
            _mark(axes, [min(max(row["hint"], low), high)], 0.0, marker, style.colour)
    shown: Any = {"linestyle": "none", "color": "#777777"}
    axes.plot([], [], marker="x", label="diverged", **shown)
    axes.plot([], [], marker="^", label="1 / lambda_max (at the edge: beyond it)", **shown)
    axes.set_xlabel("learning rate")
    axes.spines[["top", "right"]].set_visible(False)


def _mark(axes: Axes, rates: Sequence[float], height: float, marker: str, colour: str) -> None:
    """Markers at a height in units of the axes."""
    heights = [height] * len(rates)
    # They reach over the axes; the layout must not make room for them.
    look: Any = {"linestyle": "none", "markersize": 8, "clip_on": False, "in_layout": False, "zorder": 4, "alpha": 0.8}
    axes.plot(rates, heights, marker=marker, color=colour, transform=axes.get_xaxis_transform(), **look)

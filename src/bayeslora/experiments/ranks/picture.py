"""The picture of a rank study: scores and time against the number of trained parameters. Drawn without pyplot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayeslora.report.figure import png

_COLOUR = "#0072b2"
_FULL = "#d55e00"
_PANELS = {"accuracy": "accuracy", "nll": "NLL (nats)", "ece": "ECE"}
_OVERLAPS = {"chrf": "chrF", "rouge_l": "ROUGE-L"}


def rank_study_picture(record: Mapping[str, Any]) -> bytes:
    """A PNG with a panel for each score, for the training time, and for text overlap where there is any.

    Args:
        record: What rank_study.json holds.
    """
    rows = record["rows"]
    values: dict[str, list[Mapping[str, float | None]]] = {
        label: [row[name] for row in rows] for name, label in _PANELS.items()
    }
    if record["texts"]:
        values |= {label: [row["text_overlap"][name] for row in rows] for name, label in _OVERLAPS.items()}
    values["training time / smallest rank"] = [{"mean": row["relative_train_time"], "std": None} for row in rows]
    columns = 2 if len(values) == 4 else 3
    figure = Figure(figsize=(4 * columns, 3.1 * -(-len(values) // columns)), layout="constrained")
    panels = figure.subplots(-(-len(values) // columns), columns, squeeze=False).ravel()
    sizes, titles = [row["trainable_parameters"] for row in rows], [row["row"] for row in rows]
    for axes, (label, column) in zip(panels, values.items(), strict=True):
        _draw(axes, sizes, column, titles)
        axes.set_ylabel(label)
    for axes in panels[-columns:]:
        axes.set_xlabel("trained parameters")
    return png(figure)


def _draw(axes: Axes, sizes: list[int], column: list[Mapping[str, float | None]], titles: list[str]) -> None:
    axes.set_xscale("log")
    means: list[Any] = [value["mean"] for value in column]
    axes.plot(sizes, means, color="#bbbbbb", linewidth=1, zorder=1)
    for size, value, title in zip(sizes, column, titles, strict=True):
        full = title.startswith("full")
        look: Any = {"color": _FULL if full else _COLOUR, "marker": "s" if full else "o", "markersize": 5}
        axes.errorbar(size, value["mean"], yerr=value["std"], **look)  # type: ignore[arg-type]
        axes.annotate(title, (size, value["mean"]), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=7)
    axes.margins(x=0.12, y=0.2)
    axes.spines[["top", "right"]].set_visible(False)

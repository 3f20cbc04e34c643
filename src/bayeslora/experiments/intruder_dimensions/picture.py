"""The picture of a diagnosis: counts, cosines and the effect of lambda. Drawn without pyplot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bayeslora.experiments.intruder_dimensions.layers import short_names
from bayeslora.report.colours import OUTSIDE_COLOURS
from bayeslora.report.figure import png

_BAR = "#4c78a8"
_INTRUDER = "#d55e00"
_GREY = "#777777"
_MEASURES = {"accuracy": "accuracy", "nll": "NLL (nats)", "ece": "ECE"}


def diagnosis_picture(record: Mapping[str, Any]) -> bytes:
    """A PNG with intruder dimensions per layer, largest cosine against rank, and scores against lambda.

    Args:
        record: What diagnosis.json holds.
    """
    layers, repairs = record["layers"], record["repair"]
    figure = Figure(figsize=(10, 7 if repairs else 3.8), layout="constrained")
    rows = figure.subfigures(2 if repairs else 1, 1, squeeze=False)[:, 0]
    left, right = rows[0].subplots(1, 2, width_ratios=[3, 2])
    _counts(left, layers)
    _cosines(right, layers, record["threshold"])
    if repairs:
        panels = rows[1].subplots(1, len(_MEASURES))
        for axes, (name, label) in zip(panels, _MEASURES.items(), strict=True):
            _effect(axes, repairs, name, label)
        handles, titles = panels[0].get_legend_handles_labels()
        rows[1].legend(handles, titles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return png(figure)


def _counts(axes: Axes, layers: Sequence[Mapping[str, Any]]) -> None:
    places, counts = range(len(layers)), [len(layer["intruders"]) for layer in layers]
    drawn = {place: layer["intruders_of_draws"] for place, layer in enumerate(layers) if layer["intruders_of_draws"]}
    axes.bar(places, counts, color=_BAR, label="mean")
    if drawn:
        means, stds = ([entry[name] for entry in drawn.values()] for name in ("mean", "std"))
        axes.errorbar(list(drawn), means, yerr=stds, fmt="o", markersize=3, color="black", label="draws, mean ± sd")
        axes.legend(fontsize=8, frameon=False, loc="upper left", ncols=2)
    axes.set_xticks(places, short_names([layer["name"] for layer in layers]), rotation=90)
    axes.tick_params(axis="x", labelsize=8 if len(layers) <= 30 else 5)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0, max(1, axes.get_ylim()[1]) * (1.15 if drawn else 1))
    axes.set_ylabel("intruder dimensions")
    _plain(axes)


def _cosines(axes: Axes, layers: Sequence[Mapping[str, Any]], threshold: float) -> None:
    for layer in layers:
        cosines = numpy.array(layer["cosines"])
        ranks, inside = numpy.arange(1, len(cosines) + 1), cosines < threshold
        axes.plot(ranks, cosines, color=_GREY, linewidth=0.6, alpha=0.5)
        axes.plot(ranks[~inside], cosines[~inside], "o", markersize=3, color=_BAR)
        axes.plot(ranks[inside], cosines[inside], "o", markersize=4, color=_INTRUDER)
    axes.axhline(threshold, linestyle="--", linewidth=1, color=_GREY)
    axes.set_ylim(0, 1.03)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("rank of the singular value")
    axes.set_ylabel("largest |cosine| to a base vector")
    _plain(axes)


def _effect(axes: Axes, repairs: Sequence[Mapping[str, Any]], name: str, label: str) -> None:
    for number, repair in enumerate(repairs):
        points = sorted(repair["points"], key=lambda point: point["lambda"])
        title = f"{repair['task']}, {repair['split']}"
        values = [[point[key] for point in points] for key in ("lambda", name)]
        axes.plot(*values, marker="o", markersize=4, color=OUTSIDE_COLOURS[number % len(OUTSIDE_COLOURS)], label=title)
    axes.set_xlabel("lambda (0: removed, 1: as trained)")
    axes.set_ylabel(label)
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)

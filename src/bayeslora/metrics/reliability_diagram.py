"""Pictures of calibration, drawn without pyplot and so without global state."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from bayeslora.metrics import Array, ReliabilityCurve, reliability_curve, summary
from bayeslora.system.files import atomic_file

_BAR_COLOUR = "#4c78a8"
_OVERCONFIDENT_COLOUR = "#f3b0af"
_UNDERCONFIDENT_COLOUR = "#f5d27a"
_ACCURACY_COLOUR = "#1f3a5f"
_LINE_COLOUR = "#555555"


def reliability_diagram(
    curves: Mapping[str, tuple[Array, Array]], path: Path, title: str | None = None, bins: int = 15
) -> None:
    """Write one PNG with a reliability diagram per method, side by side on equal axes.

    Each panel shows the accuracy in bins of equal confidence width, the gap to the confidence shaded,
    and the share of items in each bin below. The picture is written aside and renamed, so a failure leaves
    an older one as it was.

    Args:
        curves: For each method's name its probabilities `[items, choices]` and labels `[items]`.
        path: The PNG file to write; missing folders are made.
        title: Line above all panels.
        bins: Number of bins between 0 and 1.

    Raises:
        ValueError: When there is no method, the path does not end in .png, or `metrics` refuses the arrays.

    Source: Guo et al. (arXiv:1706.04599), figure 1.
    """
    panels = {
        _panel_title(name, summary(probabilities, labels)): reliability_curve(probabilities, labels, bins)
        for name, (probabilities, labels) in curves.items()
    }
    draw_reliability_curves(panels, path, title)


def draw_reliability_curves(
    curves: Mapping[str, ReliabilityCurve], path: Path, title: str | None = None, unit: str = "items"
) -> None:
    """As `reliability_diagram`, of curves under the titles of their panels; `unit` is what the bins count.

    Raises:
        ValueError: When there is no curve, or the path does not end in .png.
    """
    path = Path(path)
    if not curves:
        raise ValueError("Expected at least one method to draw, but got none. Pass {name: (probabilities, labels)}.")
    if path.suffix.lower() != ".png":
        raise ValueError(f"Expected a path that ends in .png, but got {path}. Rename it.")
    figure = Figure(figsize=(max(3.0 * len(curves) + 0.6, 5.6), 5.0), layout="constrained")
    axes = figure.subplots(2, len(curves), squeeze=False, sharex=True, sharey="row", height_ratios=[3.2, 1])
    for column, (name, curve) in enumerate(curves.items()):
        _draw_accuracy(axes[0, column], curve)
        _draw_counts(axes[1, column], curve)
        axes[0, column].set_title(name, fontsize=9)
    axes[0, 0].set_ylabel("accuracy")
    axes[1, 0].set_ylabel(unit)
    handles, meanings = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, meanings, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)
    if title is not None:
        figure.suptitle(title, fontsize=12)
    write_png(figure, path)


def _draw_accuracy(axes: Axes, curve: ReliabilityCurve) -> None:
    centres, width = _bin_places(curve)
    confidence, accuracy = curve.confidence.numpy(), curve.accuracy.numpy()
    over, under = (confidence - accuracy).clip(min=0), (accuracy - confidence).clip(min=0)
    bar: dict[str, Any] = {"width": width, "edgecolor": "white", "linewidth": 0.6}
    axes.bar(centres, accuracy, color=_BAR_COLOUR, **bar)
    axes.bar(centres, over, bottom=accuracy, color=_OVERCONFIDENT_COLOUR, label="overconfident by", **bar)
    axes.bar(centres, under, bottom=confidence, color=_UNDERCONFIDENT_COLOUR, label="underconfident by", **bar)
    left, right = centres - width / 2, centres + width / 2
    axes.hlines(accuracy, left, right, color=_ACCURACY_COLOUR, linewidth=1.8, label="accuracy", clip_on=False)
    axes.plot([0, 1], [0, 1], linestyle="--", linewidth=1, color=_LINE_COLOUR, label="calibrated")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.spines[["top", "right"]].set_visible(False)


def _draw_counts(axes: Axes, curve: ReliabilityCurve) -> None:
    centres, width = _bin_places(curve)
    share = (curve.count / curve.count.sum()).numpy()
    axes.bar(centres, share, width, color=_LINE_COLOUR, edgecolor="white", linewidth=0.6)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes.set_xlabel("confidence")
    axes.spines[["top", "right"]].set_visible(False)


def _bin_places(curve: ReliabilityCurve) -> tuple[numpy.ndarray, float]:
    """Centres `[bins]` and the common width of the bins."""
    bins = len(curve.count)
    return (numpy.arange(bins) + 0.5) / bins, 1 / bins


def _panel_title(name: str, metrics: Mapping[str, float]) -> str:
    numbers = f"ECE {metrics['ece']:.3f}   NLL {metrics['nll']:.3f}   accuracy {metrics['accuracy']:.1%}"
    return f"{name}\n{numbers}"


def write_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG; a failure leaves an older picture as it was."""
    with atomic_file(path) as aside:
        FigureCanvasAgg(figure).print_figure(aside, format="png", dpi=150)

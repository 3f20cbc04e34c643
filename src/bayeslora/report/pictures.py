"""The pictures of a report, drawn without pyplot and so without global state; each is the bytes of a PNG."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from bayeslora.experiments.comparison import Cell
from bayeslora.metrics import entropy, reliability_curve, risk_coverage_curve
from bayeslora.report.colours import OUTSIDE_COLOURS, Style
from bayeslora.report.rows import Row, TaskRows, outside_name
from bayeslora.report.scores import Scores
from bayeslora.report.tables import passes

__all__ = ["Picture", "cost_picture", "entropy_picture", "png", "reliability_picture", "risk_coverage_picture"]

_BINS = 15
_SMALLEST_COVERAGE = 0.1
_GREY = "#777777"
_SMALL = 8


@dataclass(frozen=True)
class Picture:
    """A picture with its words.

    Attributes:
        name: File name without its ending.
        title: Line above it.
        caption: What it shows, for readers and for those who cannot see it.
        png: The file.
    """

    kind = "picture"
    name: str
    title: str
    caption: str
    png: bytes

    @property
    def data_uri(self) -> str:
        """The picture as an address that holds the picture itself."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


def reliability_picture(task: TaskRows, scores: Scores, styles: Mapping[str, Style]) -> Picture:
    """Accuracy against confidence, one panel for each row; all seeds' predictions taken together."""
    rows, labels = task.with_split("test"), task.items["test"].label_array()
    figure, panels = _panels(len(rows))
    for axes, row in zip(panels, rows, strict=True):
        parts = row.probabilities("test")
        curve = reliability_curve(numpy.concatenate(list(parts.values())), numpy.tile(labels, len(parts)), _BINS)
        filled = curve.count > 0
        share = curve.count[filled] / curve.count.sum()
        confidence, right = curve.confidence[filled], curve.accuracy[filled]
        style = _style(row, styles)
        axes.plot([0, 1], [0, 1], linestyle="--", linewidth=1, color=_GREY)
        axes.vlines(confidence, confidence, right, color=style.colour, linewidth=1, alpha=0.5)
        axes.scatter(confidence, right, s=8 + 400 * share, color=style.colour, alpha=0.8, linewidth=0, clip_on=False)
        axes.set(xlim=(0, 1), ylim=(-0.02, 1.02), aspect="equal")
        axes.set_title(f"{row.title}\nECE {scores['ece'][row.title].mean:.3f}", fontsize=_SMALL)
    figure.supxlabel("confidence of the top choice", fontsize=9)
    figure.supylabel("accuracy", fontsize=9)
    return Picture(
        name=f"{task.slug}-reliability",
        title="Reliability",
        caption=f"Accuracy against confidence in {_BINS} bins of equal width, all seeds together; the area of a point "
        "is its share of the items. Calibrated predictions lie on the dashed line, overconfident ones below it. The "
        "ECE is the mean over seeds, as in the table.",
        png=png(figure),
    )


def risk_coverage_picture(task: TaskRows, thick: Sequence[Row], styles: Mapping[str, Style]) -> Picture:
    """Error rate among the most confident items, one line for each row, mean over seeds; `thick` ones stand out."""
    labels = task.items["test"].label_array()
    # A temperature moves no choice, and the order of confidences but little.
    rows = [row for row in task.with_split("test") if row in thick or not row.has_temperature]
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        curves = [risk_coverage_curve(part, labels) for part in row.probabilities("test").values()]
        coverage, risk = curves[0].coverage, torch.stack([curve.risk for curve in curves]).mean(0)
        shown, style = coverage >= _SMALLEST_COVERAGE, _style(row, styles)
        look: dict[str, Any] = {"linewidth": 2.5, "zorder": 3} if row in thick else {"linewidth": 1, "alpha": 0.8}
        axes.plot(coverage[shown], risk[shown], color=style.colour, linestyle=style.line, label=row.title, **look)
    axes.set(xlim=(_SMALLEST_COVERAGE, 1), ylim=(0, None))
    axes.set_xlabel("coverage: share of the items answered, the most confident first")
    axes.set_ylabel("risk: error rate among them")
    _legend(figure, axes)
    return Picture(
        name=f"{task.slug}-risk-coverage",
        title="Risk and coverage",
        caption="Error rate when only the most confident items are answered; lower is better. Mean over seeds; below "
        f"{100 * _SMALLEST_COVERAGE:g} % coverage there are too few items to draw.",
        png=png(figure),
    )


def entropy_picture(task: TaskRows, outside: Sequence[str], rows: Sequence[Row]) -> Picture:
    """Predictive entropy of the items of test and of the splits `outside`, one panel for each of `rows`."""
    splits = ["test", *outside]
    largest = math.log(max(max(task.items[split].choices) for split in splits))
    edges = numpy.linspace(0, largest, 21)
    figure, panels = _panels(len(rows), width=3.4, height=2.6, columns=3)
    for axes, row in zip(panels, rows, strict=True):
        for number, split in enumerate(splits):
            values = numpy.concatenate([entropy(part).numpy() for part in row.probabilities(split).values()])
            density = numpy.histogram(values, edges, density=True)[0]
            if split == "test":
                axes.stairs(density, edges, fill=True, color="#cccccc", label=f"{task.task}, test")
                continue
            colour, line = _outside_look(number - 1)
            name = outside_name(split)
            axes.stairs(density, edges, color=colour, linestyle=line, linewidth=1.5, label=name)
        axes.set_xlim(0, largest)
        axes.set_title(row.title, fontsize=_SMALL)
    figure.supxlabel("entropy of the prediction (nats)", fontsize=9)
    figure.supylabel("density", fontsize=9)
    _legend(figure, panels[0])
    return Picture(
        name=f"{task.slug}-entropy",
        title="Entropy in and out of distribution",
        caption="How uncertain the predictions are on the test items and on items of other tasks, all seeds together. "
        "A method that knows what it does not know has its out-of-distribution items on the right.",
        png=png(figure),
    )


def _outside_look(number: int) -> tuple[str, str]:
    colours = len(OUTSIDE_COLOURS)
    return OUTSIDE_COLOURS[number % colours], ("-", "--", ":")[number // colours % 3]


def cost_picture(task: TaskRows, scores: Scores, styles: Mapping[str, Style]) -> Picture:
    """NLL against the time of training, and of prediction where it was measured."""
    costs: dict[str, Callable[[Cell], float | None]] = {
        "training (s)": lambda cell: cell.train_seconds,
        "prediction (deterministic passes)": passes,
    }
    measured = {name: cost for name, cost in costs.items() if any(row.mean(cost) for row in task.with_split("test"))}
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, len(measured), sharey=True, squeeze=False)[0]
    for axes, (name, cost) in zip(panels, measured.items(), strict=True):
        _scatter(axes, task, scores, styles, cost)
        axes.set_xlabel(name)
    panels[0].set_ylabel("NLL on the test items (nats)")
    _legend(figure, panels[0])
    return Picture(
        name=f"{task.slug}-cost",
        title="Cost and quality",
        caption="NLL against the time of training and of prediction, means over seeds with the standard deviation of "
        "the NLL; the lower left is better.",
        png=png(figure),
    )


def _scatter(
    axes: Axes, task: TaskRows, scores: Scores, styles: Mapping[str, Style], cost: Callable[[Cell], float | None]
) -> None:
    costs: list[float] = []
    for row in task.with_split("test"):
        score, found, style = scores["nll"][row.title], row.mean(cost), _style(row, styles)
        if not found:
            continue
        costs.append(found)
        axes.errorbar(
            found,
            score.mean,
            yerr=None if math.isnan(score.std) else score.std,
            color=style.colour,
            marker=style.marker,
            linestyle="none",
            elinewidth=1,
            label=row.title,
        )
    if costs and max(costs) > 5 * min(costs):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    _plain(axes)


def _style(row: Row, styles: Mapping[str, Style]) -> Style:
    return styles[row.first.method]


def _panels(number: int, *, width: float = 2.1, height: float = 2.35, columns: int = 4) -> tuple[Figure, list[Axes]]:
    """A figure with `number` panels in rows of at most `columns`."""
    columns = min(columns, number)
    lines = math.ceil(number / columns)
    figure = Figure(figsize=(max(width * columns, 4) + 0.4, height * lines + 0.4), layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel().tolist()
    for axes in grid[:number]:
        _plain(axes)
    for axes in grid[number:]:
        axes.set_visible(False)
    for axes in grid[max(0, number - columns) : number]:
        axes.xaxis.set_tick_params(labelbottom=True)
    return figure, grid[:number]


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=_SMALL)


def _legend(figure: Figure, axes: Axes) -> None:
    _plain(axes)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", fontsize=_SMALL, frameon=False)


def png(figure: Figure) -> bytes:
    """The bytes of a PNG; equal pictures are equal files."""
    buffer = io.BytesIO()
    # Without the version of matplotlib, equal pictures are equal files.
    FigureCanvasAgg(figure).print_figure(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()

"""The pictures of a report, drawn without pyplot and so without global state; each is the bytes of a PNG."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from bayeslora.experiments.comparison import Cell
from bayeslora.experiments.comparison.report.rows import Row, TaskRows, outside_name
from bayeslora.experiments.comparison.report.scores import Scores
from bayeslora.experiments.comparison.report.tables import passes
from bayeslora.metrics import entropy, reliability_curve, risk_coverage_curve
from bayeslora.report.colours import OUTSIDE_COLOURS, Style
from bayeslora.report.figure import GREY, SMALL, Picture, legend, panel_grid, plain, png

_BINS = 15
_SMALLEST_COVERAGE = 0.1


def reliability_picture(task: TaskRows, scores: Scores, styles: Mapping[str, Style]) -> Picture:
    """Accuracy against confidence, one panel for each row; all seeds' predictions taken together."""
    rows, labels = task.with_split("test"), task.items["test"].label_array()
    figure, panels = panel_grid(len(rows))
    for axes, row in zip(panels, rows, strict=True):
        parts = row.probabilities("test")
        curve = reliability_curve(numpy.concatenate(list(parts.values())), numpy.tile(labels, len(parts)), _BINS)
        filled = curve.count > 0
        share = curve.count[filled] / curve.count.sum()
        confidence, right = curve.confidence[filled], curve.accuracy[filled]
        style = _style(row, styles)
        axes.plot([0, 1], [0, 1], linestyle="--", linewidth=1, color=GREY)
        axes.vlines(confidence, confidence, right, color=style.colour, linewidth=1, alpha=0.5)
        axes.scatter(confidence, right, s=8 + 400 * share, color=style.colour, alpha=0.8, linewidth=0, clip_on=False)
        axes.set(xlim=(0, 1), ylim=(-0.02, 1.02), aspect="equal")
        axes.set_title(f"{_title(row)}\nECE {scores['ece'][row.title].mean:.3f}", fontsize=SMALL)
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
    legend(figure, axes)
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
    figure, panels = panel_grid(len(rows), width=3.4, height=2.6, columns=3)
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
        axes.set_title(_title(row), fontsize=SMALL)
    figure.supxlabel("entropy of the prediction (nats)", fontsize=9)
    figure.supylabel("density", fontsize=9)
    legend(figure, panels[0])
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
    legend(figure, panels[0])
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
    plain(axes)


def _title(row: Row) -> str:
    """In lines that fit above a panel."""
    return textwrap.fill(row.title, 26)


def _style(row: Row, styles: Mapping[str, Style]) -> Style:
    return styles[row.first.method]

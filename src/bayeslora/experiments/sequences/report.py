"""The report of continual learning: report.md and a picture of the matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy
from matplotlib.figure import Figure

from bayeslora.experiments.comparison.results import Results
from bayeslora.experiments.sequences.forgetting import METRICS, Passes, average_final, forgetting, when_learned
from bayeslora.metrics.reliability_diagram import write_png
from bayeslora.report.text import markdown_table, mean_and_std, plus_minus
from bayeslora.system.files import write_file

_NAMES = {"accuracy": "accuracy", "nll": "NLL (nats)", "ece": "ECE"}
_COLOURS = {"accuracy": "Blues", "nll": "Oranges", "ece": "Oranges"}


def write_continual_report(folder: str | Path) -> Path:
    """Write `report.md` and `matrices.png` beside the results file of `bayeslora continual`; returns the former's path.

    Raises:
        OSError: There is no results file.
        ValueError: No pass through the sequence has ended.
    """
    folder = Path(folder)
    passes = _whole_passes(Results.read(folder / "results.jsonl"))
    _picture(passes, folder / "matrices.png")
    write_file(folder / "report.md", _page(passes))
    return folder / "report.md"


def continual_summary(results: Results) -> str:
    """The summary of the report, as a Markdown table.

    Raises:
        ValueError: No pass through the sequence has ended.
    """
    return _summary(_whole_passes(results))


def _whole_passes(results: Results) -> list[Passes]:
    passes = [found for row in results.methods("final") if (found := Passes.read(results, row)).seeds]
    if not passes:
        raise ValueError(f"no pass through the whole sequence is in {results.path} yet.")
    return passes


def _page(passes: Sequence[Passes]) -> str:
    tasks = passes[0].tasks
    parts = [
        f"# Continual learning: {' → '.join(tasks)}",
        "Mean ± standard deviation over seeds. *When learned*: each task right after its own training. *Final*: all "
        "tasks after the last. *Forgetting*: best earlier accuracy minus the final one, mean over all tasks but the "
        "last (arXiv 1801.10112); negative where a task gained from later ones.",
        _summary(passes),
        "![Scores of each task after each task](matrices.png)",
    ]
    for metric in METRICS:
        parts.append(f"## {_NAMES[metric]}\n\nRows: after which task. Columns: tested on which task.")
        parts += [f"### {found.row}\n\n{_matrix(found, metric)}" for found in passes]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _summary(passes: Sequence[Passes]) -> str:
    columns: list[tuple[str, str, Callable[[numpy.ndarray], float]]] = [
        ("accuracy when learned", "accuracy", when_learned),
        ("final accuracy", "accuracy", average_final),
        ("forgetting", "accuracy", forgetting),
        ("NLL when learned", "nll", when_learned),
        ("final NLL", "nll", average_final),
        ("ECE when learned", "ece", when_learned),
        ("final ECE", "ece", average_final),
    ]
    rows = [
        [
            found.row,
            str(len(found.seeds)),
            *(
                plus_minus(*mean_and_std([reduce(each) for each in found.scores[metric]]))
                for _, metric, reduce in columns
            ),
        ]
        for found in passes
    ]
    return markdown_table(["method", "seeds", *(head for head, _, _ in columns)], rows, numbers=True)


def _matrix(found: Passes, metric: str) -> str:
    scores = found.scores[metric]
    rows = [
        [f"after {task}", *(plus_minus(*mean_and_std(scores[:, i, j].tolist())) for j in range(len(found.tasks)))]
        for i, task in enumerate(found.tasks)
    ]
    return markdown_table(["", *found.tasks], rows, numbers=True)


def _picture(passes: Sequence[Passes], path: Path) -> None:
    """Mean matrices: a row of panels for each method, a column for each metric; one colour scale for each metric."""
    tasks = passes[0].tasks
    size = 0.75 * len(tasks)
    figure = Figure(figsize=(len(METRICS) * (size + 1.5), len(passes) * (size + 0.9) + 0.5), layout="constrained")
    panels = figure.subplots(len(passes), len(METRICS), squeeze=False)
    for column, metric in enumerate(METRICS):
        means = [found.scores[metric].mean(0) for found in passes]
        low, high = min(mean.min() for mean in means), max(mean.max() for mean in means)
        for line, (found, mean) in enumerate(zip(passes, means, strict=True)):
            axes = panels[line, column]
            axes.imshow(mean, cmap=_COLOURS[metric], vmin=low, vmax=high + 1e-9)
            for (i, j), value in numpy.ndenumerate(mean):
                dark = value > (low + high) / 2
                weight = "bold" if i == j else "normal"
                axes.text(j, i, plus_minus(value), ha="center", va="center", fontsize=8, weight=weight,
                          color="white" if dark else "black")  # fmt: skip
            axes.set_xticks(range(len(tasks)), tasks, fontsize=8)
            axes.set_yticks(range(len(tasks)), tasks if column == 0 else [""] * len(tasks), fontsize=8)
            axes.tick_params(length=0)
            if column == 0:
                axes.set_ylabel("after", fontsize=8)
            axes.set_title(f"{found.row}\n{_NAMES[metric]}", fontsize=9)
            if line == len(passes) - 1:
                axes.set_xlabel("tested on", fontsize=8)
    write_png(figure, path)

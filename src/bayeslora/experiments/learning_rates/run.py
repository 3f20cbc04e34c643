"""Runs a sweep and says what it found: sweep.json, sweep.md, a picture, and a config of each row's best rate."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from bayeslora.experiments.comparison import Cell, Results
from bayeslora.experiments.comparison.cells import cell_folder
from bayeslora.experiments.comparison.runner import compare
from bayeslora.experiments.comparison.selection import best_rate, diverged
from bayeslora.experiments.learning_rates.config import SweepConfig, log_grid, wider_bound
from bayeslora.experiments.learning_rates.curvature import largest_hessian_eigenvalue
from bayeslora.experiments.learning_rates.picture import sweep_picture
from bayeslora.experiments.learning_rates.table import sweep_table
from bayeslora.metrics import summary
from bayeslora.runs.building import build_model
from bayeslora.runs.config import describe
from bayeslora.runs.config_files import dump_config
from bayeslora.runs.cross_fitting import CrossFitting
from bayeslora.runs.items import choice_count, task_items, with_classes
from bayeslora.scoring import ChoiceBatch
from bayeslora.scoring.options import Options
from bayeslora.system.files import write_file, write_json
from bayeslora.system.log import logger
from bayeslora.system.reading import read_json

FORMAT_VERSION = 1


def sweep(config: SweepConfig, output_dir: str | Path) -> dict[str, Any]:
    """Train every row with every rate of its grid, and choose on dev.

    Writes `results.jsonl` (as a comparison does, with the same resuming), `sweep.json`, `sweep.md`, `sweep.png` and for
    each row `winner-<row>.yaml`, which `bayeslora train --config` reads. A run whose loss is not finite is a point of
    the sweep. Another call with a wider grid adds its points to those that are there.

    Args:
        config: The sweep.
        output_dir: Folder for all of it.

    Returns:
        What sweep.json holds.

    Raises:
        ValueError: The folder holds the results of another config, or a task has no train or dev items.
        RuntimeError: Runs failed, or all of a row diverged; the message names them.
    """
    output = Path(output_dir)
    results = compare(config, output, _without_rates(config), stages=("selection",))
    curvatures = _curvatures(config, output) if config.hint else {}
    rows = [
        _row(config, results, task, title, curvatures.get(f"{task}, {title}"))
        for task in config.tasks
        for title in config.rows
    ]
    for row in rows:
        _relate(row, rows)
        if row["best"] is not None:
            _write_winner(config, output, row)
    record = {
        "format_version": FORMAT_VERSION,
        "model": config.model.name,
        "seed": config.seeds[0],
        "select_by": config.select_by,
        "rows": rows,
    }
    write_json(output / "sweep.json", record)
    write_file(output / "sweep.md", sweep_table(record) + "\n")
    write_file(output / "sweep.png", sweep_picture(record))
    return record


def _without_rates(config: SweepConfig) -> dict[str, Any]:
    """The config for the file's header: cells do not depend on each other, so the grid may change from call to call."""
    grid = ("learning_rates", "lowest", "highest", "ratio", "hint", "hint_examples")
    described = {name: value for name, value in describe(config).items() if name not in grid}
    for row in described["rows"].values():
        del row["learning_rates"]
    return described


def _row(
    config: SweepConfig, results: Results, task: str, title: str, curvature: dict[str, Any] | None
) -> dict[str, Any]:
    """The points of a row, the best of them, and where that lies."""
    cells = sorted(results.cells("selection", task, title), key=lambda cell: cell.learning_rate)
    rates = [cell.learning_rate for cell in cells]
    try:
        best = best_rate(results, task, title, config.seeds[0], rates, config.select_by)
    except RuntimeError:
        logger.warning("every run of %r on %s diverged", title, task)
        best = None
    edge = None if best is None or not config.has_rate(title) else {rates[0]: "lowest", rates[-1]: "highest"}.get(best)
    further = edge if best is not None else "lowest"
    largest = None if curvature is None else curvature["largest_eigenvalue"]
    return {
        "task": task,
        "row": title,
        "points": [_point(cell, results) for cell in cells],
        "best": best,
        "edge": edge,
        "remedy": None if further is None else _remedy(config, title, rates, further),
        "largest_eigenvalue": largest,
        "hint": 1 / largest if largest is not None and largest > 0 else None,
    }


def _remedy(config: SweepConfig, title: str, rates: list[float], edge: str) -> str:
    """How the grid of a row goes on beyond an edge."""
    if rates == log_grid(config.lowest, config.highest, config.ratio):
        bound = wider_bound(config, edge)
        return f"Run the same command with --{edge} {bound:.12g}; only the new rates are trained."
    beyond = rates[0] / config.ratio if edge == "lowest" else rates[-1] * config.ratio
    own = f"rows.{title}.learning_rates" if config.rows[title].learning_rates else "learning_rates"
    return f"Add {beyond:.2g} to {own} and run again; only the new rates are trained."


def _point(cell: Cell, results: Results) -> dict[str, Any]:
    if diverged(cell):
        return {"learning_rate": cell.learning_rate, "diverged": True}
    scores = summary(cell.predictions["dev"].normalised(), results.items(cell.task, "dev").label_array())
    return {
        "learning_rate": cell.learning_rate,
        "diverged": False,
        **{name: scores[name] for name in ("accuracy", "nll", "ece")},
    }


def _relate(row: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """The rate that the first row's best one and the ratio of the eigenvalues predict for this row."""
    first = next(other for other in rows if other["task"] == row["task"])
    known = first["best"] is not None and first["hint"] is not None and row["hint"] is not None
    row["relative_hint"] = first["best"] * row["hint"] / first["hint"] if known else None


def _write_winner(config: SweepConfig, output: Path, row: dict[str, Any]) -> None:
    """The config of a row's best run."""
    parts = [row["row"]] if len(config.tasks) == 1 else [row["task"], row["row"]]
    name = "-".join(re.sub(r"[^\w.]+", "_", part).strip("_") for part in parts)
    row["winner"] = f"winner-{name}.yaml"
    best = config.run(row["task"], row["row"], config.seeds[0], row["best"])
    write_file(output / row["winner"], dump_config(best))


# --- curvature ---------------------------------------------------------------------------------------------------


def _curvatures(config: SweepConfig, output: Path) -> dict[str, dict[str, Any]]:
    """The largest eigenvalue of each task and row, kept in curvature.json so that each is computed once."""
    path = output / "curvature.json"
    found: dict[str, dict[str, Any]] = read_json(path) if path.is_file() else {}
    for task in config.tasks:
        for title in config.rows:
            key = f"{task}, {title}"
            if found.get(key, {}).get("items") != config.hint_examples:
                largest = _curvature(config, output, task, title)
                found[key] = {"items": config.hint_examples, "largest_eigenvalue": largest}
                write_json(path, found)
                logger.info("largest eigenvalue of the Hessian of %s: %s", key, largest)
    return found


def _curvature(config: SweepConfig, output: Path, task: str, title: str) -> float | None:
    """At the start of training, as a run of that row with the first seed starts; None for a row without a rate."""
    if not config.has_rate(title):
        return None
    seed, rate = config.seeds[0], config.grid(title)[0]
    run = config.run(task, title, seed, rate)
    splits = task_items(run.task)
    run = replace(run, task=with_classes(run.task, splits.items))
    folder = cell_folder(output, task, title, rate, seed)
    model, scoring = build_model(run, folder, choice_count(run.task, splits))
    if isinstance(scoring, Options):  # What is read at the start of training are heads.
        CrossFitting(run, model, scoring, splits.train, None).refit()
    items, device = splits.train[: config.hint_examples], next(model.parameters()).device

    def batches() -> Iterator[ChoiceBatch]:
        for first in range(0, len(items), run.batch_size):
            yield scoring(items[first : first + run.batch_size]).to(device)

    return largest_hessian_eigenvalue(model, batches)

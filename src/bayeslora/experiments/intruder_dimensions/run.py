"""The diagnosis of a run or an adapter: diagnosis.json, a picture and a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy

from bayeslora.experiments.intruder_dimensions.intruders import THRESHOLD, TOP
from bayeslora.experiments.intruder_dimensions.layers import LayerSpectra, layer_spectra, scaled_intruders
from bayeslora.experiments.intruder_dimensions.loading import load_adapter
from bayeslora.experiments.intruder_dimensions.picture import diagnosis_picture
from bayeslora.experiments.intruder_dimensions.table import found_any
from bayeslora.runs import Run, task_items
from bayeslora.runs.config import TaskConfig
from bayeslora.runs.loading import scoring_of
from bayeslora.scoring import get_scoring
from bayeslora.system.console import track
from bayeslora.system.files import check_absent, write_file, write_json
from bayeslora.system.folders import only_replacer
from bayeslora.system.locating import require_place
from bayeslora.tasks import allow_task

FORMAT_VERSION = 1
SCALES = (0.0, 0.25, 0.5, 0.75, 1.0)


def diagnose(
    source: str | Path,
    output_dir: str | Path | None = None,
    *,
    base_model: str | None = None,
    tasks: Sequence[str] | None = None,
    scoring: str | None = None,
    split: Literal["dev", "test"] = "dev",
    examples: int | None = None,
    scales: Sequence[float] = SCALES,
    num_samples: int | None = None,
    seed: int | None = None,
    top: int = TOP,
    threshold: float = THRESHOLD,
    device: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Count intruder dimensions, and measure what scaling them down does (arXiv 2410.21228).

    Writes `diagnosis.json`, and where any were found `diagnosis.png`; without any, nothing is predicted either.

    Args:
        source: A run folder, a PEFT adapter's folder, or the Hub id of one of them.
        output_dir: Default: `diagnosis` in the folder; for a Hub id it must be named.
        base_model: Hub id or folder of the base model, in place of the one that is noted.
        tasks: Tasks to measure the repair on, by name or path; default: the run's own. An adapter without a run is
            only counted, unless tasks are named.
        scoring: How the tasks are read; default: the run's, or that of the adapter's task type.
        split: Of the tasks.
        examples: Items of each task; default: the run's number for its own task, all of another.
        scales: Values of lambda, by which the intruder dimensions' singular values are multiplied.
        num_samples: Posterior draws to count in and to predict with; default: the run's.
        seed: Of the draws; default: the run's.
        top: k, how many singular vectors of a layer to look at.
        threshold: epsilon, the cosine below which a vector is an intruder dimension.
        device: As `bayeslora.load_run`.
        overwrite: Replace a diagnosis that is there.

    Returns:
        What diagnosis.json holds.

    Raises:
        FileNotFoundError: There is no such run or adapter.
        FileExistsError: A diagnosis is in the output folder, and not `overwrite`.
        RuntimeError: Another process writes there.
        ValueError: The adapter cannot be diagnosed, or a task has no items in the split; the message says why.
    """
    if output_dir is None:
        require_place(source)
    target = Path(output_dir) if output_dir is not None else Path(source) / "diagnosis"
    check_absent(target / "diagnosis.json", overwrite)
    for name in tasks or ():
        allow_task(name)
    run, knows_task = load_adapter(source, base_model, device)
    if not run.config.method.adapts:
        raise ValueError(f"{source} is a head on frozen features: it has no adapter, so there is nothing to diagnose.")
    with only_replacer(target):
        check_absent(target / "diagnosis.json", overwrite)
        config = run.config
        seed = config.seed if seed is None else seed
        draws = config.samples_used(num_samples)
        if scoring is not None:
            _read_by(run, scoring)
        layers = layer_spectra(run.model, draws, seed, top=top, threshold=threshold)
        names = list(tasks) if tasks is not None else [config.task.name] if knows_task else []
        record: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "source": str(source),
            "base_model": config.model.name,
            "method": config.method.name,
            "top": top,
            "threshold": threshold,
            "seed": seed,
            **_counts(layers),
            "layers": [_layer(layer) for layer in layers],
            "repair": [
                _repair(run, layers, _task(config.task, name, knows_task, split, examples), split, scales, draws)
                # Without intruder dimensions there is nothing to scale down.
                for name in (names if any(layer.mean.count for layer in layers) else [])
            ],
        }
        _write(record, target)
    return record


def _write(record: dict[str, Any], target: Path) -> None:
    write_json(target / "diagnosis.json", record)
    picture = target / "diagnosis.png"
    if found_any(record):
        write_file(picture, diagnosis_picture(record))
    else:
        picture.unlink(missing_ok=True)


def _read_by(run: Run, name: str) -> None:
    """Have the run read items by another scoring, of the same kind of head."""
    kind = get_scoring(name).kind
    if kind != run.scoring.kind:
        raise ValueError(f"scoring {name!r} reads a {kind} head, but this model has a {run.scoring.kind} head.")
    run.config.task.scoring = name
    run.scoring = scoring_of(run.config.task, run.scoring.tokenizer, run.scoring.max_length)


def _counts(layers: Sequence[LayerSpectra]) -> dict[str, Any]:
    """Intruder dimensions of the whole model, of the mean and of each draw."""
    draws = numpy.array([layer.draws for layer in layers if layer.draws])
    of_draws = draws.sum(0)
    counted = {"draws": of_draws.tolist(), **_spread(of_draws)} if draws.size else None
    return {"intruders": sum(layer.mean.count for layer in layers), "intruders_of_draws": counted}


def _spread(counts: numpy.ndarray) -> dict[str, float]:
    """Mean, and the sample standard deviation (0 of one draw)."""
    return {"mean": float(counts.mean()), "std": float(counts.std(ddof=1)) if counts.size > 1 else 0.0}


def _layer(layer: LayerSpectra) -> dict[str, Any]:
    spectrum, draws = layer.mean, numpy.array(layer.draws)
    return {
        "name": layer.name.removeprefix("base_model.model."),
        "shape": list(layer.shape),
        "largest_base_singular_value": layer.base_value,
        "update_norm": layer.update_norm,
        "singular_values": spectrum.values.tolist(),
        "cosines": spectrum.cosines.tolist(),
        "intruders": spectrum.is_intruder.nonzero().flatten().tolist(),
        "intruders_of_draws": _spread(draws) if draws.size else None,
    }


def _task(
    own: TaskConfig, name: str, knows_task: bool, split: Literal["dev", "test"], examples: int | None
) -> TaskConfig:
    """The task of this name with the number of items that is asked for."""
    if not (knows_task and name == own.name):
        own = replace(own, name=name, train_examples=None, dev_examples=None, test_examples=None)
    if examples is None:
        return own
    return replace(own, dev_examples=examples) if split == "dev" else replace(own, test_examples=examples)


def _repair(
    run: Run,
    layers: Sequence[LayerSpectra],
    task: TaskConfig,
    split: Literal["dev", "test"],
    scales: Sequence[float],
    num_samples: int,
) -> dict[str, Any]:
    """Scores on a task for each lambda."""
    items = getattr(task_items(task), split)
    if not items:
        raise ValueError(f"task {task.name!r} has no {split} items to measure the repair on; name another split.")
    points = []
    for scale in track(scales, "repair", "values of lambda"):
        with scaled_intruders(layers, scale):
            scores = run.predict(items, num_samples).metrics()
        points.append({"lambda": scale, **{name: scores[name] for name in ("accuracy", "nll", "ece")}})
    return {
        "task": task.name,
        "split": split,
        "scoring": task.scoring,
        "items": len(items),
        "num_samples": num_samples,
        "points": points,
    }

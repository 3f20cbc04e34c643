"""The export of a run folder."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from bayeslora.deploy.export.adapters import export_mean, export_samples
from bayeslora.deploy.export.folder import Dtype, check_output
from bayeslora.deploy.export.merged import export_merged
from bayeslora.runs import Run, load_run
from bayeslora.runs.items import class_names, task_items
from bayeslora.tasks import TaskError

__all__ = ["export_run"]

logger = logging.getLogger("bayeslora")


def export_run(
    run: str | Path,
    output_dir: str | Path,
    *,
    format: Literal["mean", "samples", "merged"] = "mean",
    num_samples: int | None = None,
    seed: int | None = None,
    draw: int | None = None,
    dtype: Dtype = "float32",
    device: str | None = None,
) -> dict[str, Any]:
    """Export the adapter of a run folder.

    Args:
        run: The run folder.
        output_dir: Folder to write, whole or not at all. An export that is there is replaced.
        format: "mean" or "samples" (LoRA adapters), or "merged" (the base model with the mean, or a draw, in it).
        num_samples: Draws of "samples"; default: 8. Of an ensemble always all members.
        seed: Seed of the draws; default: the run's, with which `bayeslora predict` draws.
        draw: Number of the draw for "merged"; default: the mean.
        dtype: Number type of the files.
        device: As `bayeslora.load_run`.

    Returns:
        What export.json holds, with `warnings`, a list of texts.

    Raises:
        FileNotFoundError: `run` is no finished run.
        FileExistsError: `output_dir` holds something that is no export.
        ValueError: The adapter cannot be exported that way, or an option belongs to another format.
    """
    if format not in ("mean", "samples", "merged"):
        raise ValueError(f"format must be 'mean', 'samples' or 'merged', got {format!r}.")
    for name, value, belongs in (("num_samples", num_samples, "samples"), ("draw", draw, "merged")):
        if value is not None and format != belongs:
            raise ValueError(f"{name} is for format {belongs!r}, but format is {format!r}; leave it out.")
    check_output(output_dir)
    loaded = load_run(run, device=device)
    config, model = loaded.config, loaded.model
    seed = config.seed if seed is None else seed
    details = {"run": str(run), "method": config.method.name, "temperature": loaded.temperature}
    if loaded.temperature != 1:
        logger.warning(
            "the run divides log-probabilities by its temperature %.4g, which weights cannot do; do so yourself where "
            "they are served (export.json has it)",
            loaded.temperature,
        )
    if format == "mean":
        return export_mean(model, output_dir, dtype=dtype, details=details)
    if format == "samples":
        return export_samples(model, output_dir, num_samples=num_samples, seed=seed, dtype=dtype, details=details)
    tokenizer = loaded.scoring.tokenizer
    return export_merged(
        model,
        output_dir,
        draw=draw,
        seed=seed,
        dtype=dtype,
        tokenizer=tokenizer,
        classes=_classes(loaded) if config.task.scoring == "classification" else None,
        details=details,
    )


def _classes(run: Run) -> list[str] | None:
    """Names of the classes of the run's head, in its order."""
    known: list[str] | None = run.config.task.classes or run.metrics.get("classes") or run.config.task.choices
    if known is not None:
        return known
    # An older run, which did not write them down.
    with suppress(TaskError, OSError, ImportError):
        known = class_names(task_items(run.config.task))
    if known is None:
        logger.warning("the names of the classes are not known: the exported config calls them LABEL_0, LABEL_1, ...")
    return known

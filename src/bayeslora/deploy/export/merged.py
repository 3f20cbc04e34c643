"""The base model with the posterior mean, or a draw, in its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from bayeslora.adapters.lora_file import adapted_layers, adapter_config, adapter_name
from bayeslora.adapters.merging import merged
from bayeslora.adapters.sampling import sampling
from bayeslora.deploy.export.adapters import mean_warnings, require_draws, require_mean
from bayeslora.deploy.export.base import ExportFormat, ExportRequest
from bayeslora.deploy.export.folder import Dtype, export_folder, write_record
from bayeslora.deploy.export.rounding import TOLERATED_NOISE, relative_error
from bayeslora.models.base_model import quiet_transformers
from bayeslora.models.layers import evaluating
from bayeslora.runs import Run
from bayeslora.runs.items import class_names, task_items
from bayeslora.system.log import logger
from bayeslora.tasks import TaskError


def export_merged(
    model: PeftModel,
    output_dir: str | Path,
    *,
    draw: int | None = None,
    seed: int = 0,
    dtype: Dtype = "float32",
    tokenizer: PreTrainedTokenizerBase | None = None,
    classes: Sequence[str] | None = None,
    details: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the base model with the posterior mean, or one draw, in its weights: a folder transformers loads alone.

    It merges in place, as PEFT's `merge_and_unload` does: `model` has no adapter afterwards, and its type is `dtype`.
    Weights and updates are added in float32 and rounded once.

    Args:
        model: With one active adapter, on a base model that is not quantised.
        output_dir: Folder to write, whole or not at all. An export that is there is replaced.
        draw: Number of the draw of `bayeslora.sampling(model, seed=seed)`; None: the mean.
        seed: Seed of the draw.
        dtype: Number type of the weights.
        tokenizer: To save beside the model.
        classes: Names of the classes of a classification head, in its order, for the config's `id2label`.
        details: What else to note in export.json, such as the run.

    Returns:
        What export.json holds, with `warnings`, a list of texts: one where rounding to `dtype` changes the update.

    Raises:
        FileExistsError: `output_dir` holds something that is no export.
        NotImplementedError: The mean of C-LoRA depends on the input.
        ValueError: The base model is quantised, or the adapter has no such draw.
    """
    if draw is None:
        require_mean(model)
    else:
        require_draws(model)
        if draw < 0:
            raise ValueError(f"draw must be at least 0, got {draw}; leave it out for the mean.")
    if getattr(model.get_base_model(), "is_quantized", False):
        raise ValueError(
            "merging into a quantised base model would round the update to its few levels; load the base model "
            "unquantised, or export LoRA adapters (mean or samples)."
        )
    facts: dict[str, Any] = {
        "format": "merged",
        "dtype": dtype,
        "base_model": adapter_config(model).base_model_name_or_path,
        **({} if draw is None else {"draw": draw, "seed": seed}),
    }
    warnings = mean_warnings(model) if draw is None else []
    with export_folder(output_dir) as folder, evaluating(model), torch.no_grad():
        model.float()
        with nullcontext() if draw is None else sampling(model, 1, seed, first=draw):
            warnings += _rounding_warnings(model, dtype)
            result: Any = merged(model)
        warnings += _name_classes(result.config, classes)
        with quiet_transformers(progress_bars=False):
            result.to(getattr(torch, dtype)).save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        return write_record(folder, {**facts, **(details or {})}, warnings)


class Merged(ExportFormat):
    """The base model with the mean, or a draw, in it."""

    name = "merged"
    options = ("draw",)
    use = "transformers and servers load it as any model; commands: docs/guides/export.md"

    def write(self, request: ExportRequest) -> dict[str, Any]:
        """As `export_merged`."""
        run = request.run
        return export_merged(
            run.model,
            request.output_dir,
            draw=request.draw,
            seed=request.seed,
            dtype=request.dtype,
            tokenizer=run.scoring.tokenizer,
            classes=_classes(run) if run.scoring.takes_classes else None,
            details=request.details,
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


def _name_classes(config: Any, classes: Sequence[str] | None) -> list[str]:
    """Write the names of the classes into the config; one warning where there are more or fewer than the head has."""
    if classes is None:
        return []
    if len(classes) != config.num_labels or len(set(classes)) < len(classes):
        return [f"the head has {config.num_labels} classes, so it is not told that they are called {list(classes)}"]
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: number for number, name in enumerate(classes)}
    return []


def _rounding_warnings(model: PeftModel, dtype: Dtype) -> list[str]:
    """One where the rounded sum of weight and update is not the rounded weight plus the update."""
    if dtype == "float32":
        return []
    name = adapter_name(model)
    errors = {
        key: relative_error(layer.get_base_layer().weight, layer.get_delta_weight(name), dtype)
        for key, layer in adapted_layers(model).items()
        if name not in layer.lora_variant
    }
    lost = [key for key, error in errors.items() if not error**2 <= TOLERATED_NOISE]
    if not lost:
        return []
    worst = max(lost, key=errors.__getitem__)
    return [
        f"rounded to {dtype}, the merged update of {len(lost)} of {len(errors)} layers is lost: it is off by "
        f"{errors[worst]:.0%} of its norm in {worst}. Merge in float32, or serve the base model with LoRA adapters, "
        "whose updates are rounded apart from the weights."
    ]

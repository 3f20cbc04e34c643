"""The posterior mean, or posterior draws, as ordinary LoRA adapters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel

from bayeslora.adapters.draws import find_draws, random_factors, random_modules
from bayeslora.adapters.lora_file import adapter_config, lora_tensors, write_lora
from bayeslora.adapters.merging import shared_layers
from bayeslora.adapters.random_factor import RandomFactor
from bayeslora.adapters.sampling import sampling
from bayeslora.deploy.export.base import ExportFormat, ExportRequest
from bayeslora.deploy.export.folder import Dtype, export_folder, write_record
from bayeslora.deploy.export.rounding import Spread
from bayeslora.posteriors.weights.point import MembersWeights


def export_mean(
    model: PeftModel, output_dir: str | Path, *, dtype: Dtype = "float32", details: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write the posterior mean of the active adapter as an ordinary LoRA adapter.

    That of plain LoRA is the adapter itself, that of an ensemble its first member.

    Args:
        model: With one active adapter whose mean is a LoRA: that of every method but C-LoRA.
        output_dir: Folder to write, whole or not at all. An export that is there is replaced.
        dtype: Number type of the file. Modules in `modules_to_save` keep their own.
        details: What else to note in export.json, such as the run.

    Returns:
        What export.json holds, with `warnings`, a list of texts.

    Raises:
        FileExistsError: `output_dir` holds something that is no export.
        ValueError: The adapter cannot be written as a LoRA; the message says why.
    """
    require_mean(model)
    facts = {"format": "mean", "dtype": dtype, "base_model": adapter_config(model).base_model_name_or_path}
    with export_folder(output_dir) as folder:
        write_lora(model, folder, lora_tensors(model), dtype)
        return write_record(folder, {**facts, **(details or {})}, mean_warnings(model) + _tied_warnings(model))


def export_samples(
    model: PeftModel,
    output_dir: str | Path,
    *,
    num_samples: int | None = None,
    seed: int = 0,
    dtype: Dtype = "float32",
    details: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write posterior draws of the active adapter as ordinary LoRA adapters in the folders `draw0`, `draw1`, ...

    `draw<s>` is draw s of `bayeslora.sampling(model, num_samples, seed)`, of an ensemble member s. A prediction is the
    average of the probabilities (not of the logits) of all of them.

    Args:
        model: With one active adapter whose draws are weights.
        output_dir: Folder to write, whole or not at all. An export that is there is replaced.
        num_samples: Draws S; default: 8. Of an ensemble always all members.
        seed: Seed of the draws.
        dtype: Number type of the files. Modules in `modules_to_save` keep their own.
        details: What else to note in export.json, such as the run.

    Returns:
        What export.json holds: among it `spread`, how rounding to `dtype` (to bfloat16 for float32 files, which servers
        often round to it) changes the spread of the draws, and `warnings`, a list of texts.

    Raises:
        FileExistsError: `output_dir` holds something that is no export.
        ValueError: The adapter has no draws of weights, or cannot be written as a LoRA; the message says why.
    """
    if num_samples is not None and num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}; for the mean use format 'mean'.")
    require_draws(model)
    members = _members(model)
    count = members or num_samples or 8
    warnings = []
    if num_samples not in (None, count):
        warnings.append(f"the draws of an ensemble are its members: {count} were written, not {num_samples}")
    spread = Spread("bfloat16" if dtype == "float32" else dtype)
    facts = {
        "format": "samples",
        "dtype": dtype,
        "base_model": adapter_config(model).base_model_name_or_path,
        "num_samples": count,
        "seed": seed,
        "draws": [f"draw{number}" for number in range(count)],
    }
    with export_folder(output_dir) as folder:
        for number, name in enumerate(facts["draws"]):
            with sampling(model, 1, seed, first=number):
                tensors = lora_tensors(model)
            spread.add(tensors)
            write_lora(model, folder / name, tensors, dtype)
        facts["spread"] = spread.report()
        warnings += spread.warnings() + _tied_warnings(model)
        return write_record(folder, {**facts, **(details or {})}, warnings)


class Mean(ExportFormat):
    """The posterior mean as one LoRA adapter."""

    name = "mean"
    use = "peft.PeftModel.from_pretrained or a server of LoRA adapters loads it; commands: docs/guides/export.md"

    def write(self, request: ExportRequest) -> dict[str, Any]:
        """As `export_mean`."""
        return export_mean(request.run.model, request.output_dir, dtype=request.dtype, details=request.details)


class Samples(ExportFormat):
    """Posterior draws as LoRA adapters."""

    name = "samples"
    options = ("num_samples",)
    use = "load each by PEFT or a server of LoRA adapters, average their probabilities; commands: docs/guides/export.md"

    def write(self, request: ExportRequest) -> dict[str, Any]:
        """As `export_samples`."""
        return export_samples(
            request.run.model,
            request.output_dir,
            num_samples=request.num_samples,
            seed=request.seed,
            dtype=request.dtype,
            details=request.details,
        )


def require_mean(model: PeftModel) -> None:
    """Whether the weights of the moment are the mean.

    Raises:
        ValueError: They are a draw's.
    """
    draws = find_draws(model)
    if draws is not None and draws.explicit:
        raise ValueError("inside `bayeslora.sampling` the weights are a draw's; leave it before you export.")


def require_draws(model: PeftModel) -> None:
    """Whether the posterior's draws are weights.

    Raises:
        ValueError: There is no posterior, or its draws depend on the input.
    """
    require_mean(model)
    modules = random_modules(model)
    remedy = (
        "Predict with bayeslora, or train a method that draws weights (BayesianLora, Blob, MeanField, Tfb, "
        "DeepEnsemble, ...)."
    )
    if not modules:
        raise ValueError(
            "this adapter has no posterior over weights: plain LoRA has none, and that of Laplace-LoRA serves the "
            "logits of the linearised model, for which no set of weights stands. Export the mean. " + remedy
        )
    others = [type(module).__name__ for module in modules if not isinstance(module, RandomFactor)]
    if others:
        raise ValueError(
            f"the draws of this adapter are no weights but depend on the input ({others[0]}: the masks of Monte Carlo "
            "dropout, or the noise of C-LoRA), so no LoRA file can hold one. " + remedy
        )


def mean_warnings(model: PeftModel) -> list[str]:
    """What to know about the mean of this adapter."""
    members = _members(model)
    return [f"the mean of an ensemble is no trained model: this is its member 0 of {members}"] if members else []


def _tied_warnings(model: PeftModel) -> list[str]:
    """One where merging the files would change a module that is not adapted."""
    names = ", ".join(shared_layers(model.get_base_model()))
    if not names:
        return []
    return [
        f"{names} shares its weight with another module of the base model: a program that merges this adapter must "
        "give it a weight of its own first, which PEFT does not do; or export it merged"
    ]


def _members(model: PeftModel) -> int | None:
    """Members of an ensemble of adapters; None for another posterior."""
    families = [factor.family for factor in random_factors(model)]
    return next((family.members for family in families if isinstance(family, MembersWeights)), None)

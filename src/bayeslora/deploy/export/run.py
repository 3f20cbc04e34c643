"""The export of a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bayeslora.deploy.export.base import ExportFormat, ExportRequest
from bayeslora.deploy.export.folder import Dtype, check_output
from bayeslora.options.registry import Registry
from bayeslora.readouts.formula import write_formula
from bayeslora.readouts.head import Head
from bayeslora.readouts.option_reading import OptionReading
from bayeslora.runs import Run, load_run
from bayeslora.runs.cross_fitting import reading_of
from bayeslora.system.folders import only_replacer
from bayeslora.system.log import logger

FORMATS: Registry[ExportFormat] = Registry(ExportFormat, "bayeslora.deploy.export")  # type: ignore[type-abstract]
"""By name, as `--format` has it."""

HEAD_NAME = "head.safetensors"


def export_run(
    run: str | Path,
    output_dir: str | Path,
    *,
    format: str = "mean",
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
        format: "mean" or "samples" (LoRA adapters), "merged" (the base model with the mean, or a draw, in it), or the
            name of a `bayeslora.deploy.export.ExportFormat` of your own.
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
        RuntimeError: Another process exports to `output_dir`.
        ValueError: The adapter cannot be exported that way, or an option belongs to another format.
    """
    FORMATS.check(format, "format")
    kind = FORMATS.get(format)()
    for name, value in (("num_samples", num_samples), ("draw", draw)):
        if value is not None and name not in kind.options:
            belongs = " and ".join(repr(other.name) for other in FORMATS.classes() if name in other.options)
            raise ValueError(f"{name} is for format {belongs}, but format is {format!r}; leave it out.")
    with only_replacer(output_dir):
        check_output(output_dir)
        loaded = _loaded(run, device)
        seed = loaded.config.seed if seed is None else seed
        _say_temperature(loaded, drawn=format == "samples" or draw is not None)
        details = {"run": str(run), "method": loaded.config.method.name, "temperature": loaded.temperature}
        written = kind.write(ExportRequest(loaded, output_dir, seed, dtype, num_samples, draw, details))
        if isinstance(reading := reading_of(loaded.scoring), OptionReading):
            _write_head(reading.heads[0], Path(output_dir) / HEAD_NAME)
        elif reading is not None:
            logger.warning(
                "heads read this run's answers off its layers, which no plain server does: what was exported is the "
                "adapter alone, whose own words were not trained. `bayeslora serve` takes the run as it is."
            )
        return written


def _write_head(head: Head, path: Path) -> None:
    write_formula(head, path)
    logger.warning(
        "a head reads this run's choices off its layers, which no plain server does: what was exported is the adapter "
        "alone, whose own words were not trained; %s beside it is the head's mean with its formula, for code of your "
        "own. `bayeslora serve` takes the run as it is.",
        path.name,
    )


def _loaded(run: str | Path, device: str | None) -> Run:
    loaded = load_run(run, device=device)
    if not loaded.config.method.adapts:
        raise ValueError(
            f"{run} is a head on frozen features: it has no adapter that a plain server could load. Serve it by "
            "`bayeslora serve`, or write its mean as a small file with its formula, for code of your own: "
            "bayeslora.BayesianHead.load(RUN).export(FILE)."
        )
    return loaded


def _say_temperature(run: Run, *, drawn: bool) -> None:
    """A word where predictions of the run have one, which weights cannot have; `drawn`: draws are exported."""
    if run.temperature == 1:
        return
    whole = run.config.samples_used()
    if whole and not (drawn and run.config.method.forwards_used(whole) == whole):
        logger.warning(
            "the run's temperature %.4g was fitted to predictions by its whole posterior, not to what is exported; the "
            "mean's own is that of a run of method Lora with method.init_from the exported mean, train.epochs 0 and "
            "temperature_scaling",
            run.temperature,
        )
        return
    logger.warning(
        "the run divides log-probabilities by its temperature %.4g, which weights cannot do; do so yourself where "
        "they are served (export.json has it)",
        run.temperature,
    )

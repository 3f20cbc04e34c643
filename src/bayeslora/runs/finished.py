"""What can be done with a finished run: load it, evaluate it, predict with it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bayeslora.adapters.files import read_adapter_config
from bayeslora.adapters.from_lora import adapter_folder
from bayeslora.methods import Method
from bayeslora.metrics.reliability_diagram import reliability_diagram
from bayeslora.options.classes import permit
from bayeslora.options.ranges import Positive, check_value
from bayeslora.prediction.conformal import check_coverage
from bayeslora.readouts.files import heads_from_state
from bayeslora.runs.building import open_trunk_cache
from bayeslora.runs.config import ModelConfig, RunConfig, TaskConfig
from bayeslora.runs.config_files import read_config
from bayeslora.runs.cross_fitting import read_above_adapters, read_by_heads, reading_of
from bayeslora.runs.dev_predictions import calibrated_on_dev
from bayeslora.runs.evaluation_files import EVALUATION_PARTS, TEXT_EVALUATION_PARTS, check_evaluation
from bayeslora.runs.heads import load_head_run
from bayeslora.runs.items import build_task, file_options, task_items, with_file_options
from bayeslora.runs.loading import load_adapted, merge_resolved
from bayeslora.runs.prediction import Prediction, write_rows
from bayeslora.runs.run import Run
from bayeslora.runs.state import load_state
from bayeslora.scoring import Scoring
from bayeslora.scoring.options import Options
from bayeslora.system.devices import kept_device
from bayeslora.system.files import recover_folder, write_json
from bayeslora.system.folders import only_writer, recover_parts, replaced_together, to_be_written
from bayeslora.system.locating import is_hub_run, run_folder
from bayeslora.system.processes import barrier, is_main
from bayeslora.system.reading import read_json
from bayeslora.tasks import LocalFile, allow_task, load_items

logger = logging.getLogger("bayeslora")

__all__ = ["evaluate", "load_run", "predict_file", "write_evaluation"]


def load_run(
    run: str | Path,
    *,
    revision: str | None = None,
    base_model: str | None = None,
    device: str | None = None,
    allow_method: str | None = None,
) -> Run:
    """Load the adapter of a run on its base model, in eval mode.

    Where the run kept its trunk cache in a folder (`train.cache_trunk_folder`), predictions read and fill it too.

    Args:
        run: The run folder; or the Hub id of a pushed run, `user/name` or `user/name@revision`, which is downloaded
            into the Hub's cache. A private one needs `hf auth login`.
        revision: Branch, tag or commit of a Hub id.
        base_model: Hub id or folder of the base model, in place of the name that the run gives.
        allow_method: Dotted path of a method outside of bayeslora that the run may name. It is imported; a run alone
            has nothing imported.
        device: "auto", "cpu", "cuda", "cuda:1", ...; default: where the run was trained, or "auto" if that is not here.

    Raises:
        ImportError: `allow_method` cannot be imported.
        FileNotFoundError: There is no such run, or its base model was a folder that is not here.
        ValueError: `device` is not here; the adapter belongs to another base model, was written by a newer version, or
            does not hold all weights that the base model's checkpoint lacks; a file of the run is damaged, or a number
            in it is not finite or out of its range.
    """
    if allow_method is not None:
        permit(Method, allow_method)
    folder = run_folder(run, revision)
    recover_parts(folder)
    recover_folder(folder / "adapter")
    adapter = Path(adapter_folder(folder))
    if (folder / "decision.json").is_file():
        raise ValueError(
            f"{run} is a decision model, which has no items: ask it by `bayeslora decide` or `serve`, calibrate it by "
            "`bayeslora calibrate`, or load it by bayeslora.DecisionModel.load."
        )
    for path in _needed(folder, adapter):
        if not path.is_file():
            raise FileNotFoundError(
                f"{run} is not a finished run: {path.name} is missing. Expected the --output_dir of `bayeslora train`, "
                "or the Hub id of a run that was pushed by `bayeslora push`. An adapter alone loads with PEFT."
            )
    metrics, state = read_json(folder / "metrics.json"), load_state(folder)
    temperature = metrics.get("temperature", 1.0)
    check_value(temperature, Positive, f"{folder / 'metrics.json'}: temperature")
    config = read_config(folder / "config.yaml")
    config.model = _base_model(config.model, base_model)
    config.model.device = kept_device(config.model.device) if device is None else device
    if not config.method.adapts:
        return load_head_run(config, folder, metrics)
    if not config.method.trains(stored := read_adapter_config(adapter)):
        raise ValueError(
            f"{adapter / 'adapter_config.json'}: peft_type is {stored.peft_type}, but config.yaml names the method "
            f"{config.method.name}, whose adapters have another; copy the run again from where it was written."
        )
    model, scoring = load_adapted(merge_resolved(config.model, folder), config.task, adapter, prepare=_heads_of(config))
    if reading := reading_of(scoring):
        read_above_adapters(model, reading)
        reading.heads = heads_from_state(state)
    return Run(
        config=config,
        model=model,
        scoring=scoring,
        metrics=metrics,
        state=state,
        temperature=temperature,
        trunk_cache=open_trunk_cache(config, model) if config.train.cache_trunk_folder else None,
        folder=None if is_hub_run(run) else folder,
    )


def _heads_of(config: RunConfig) -> Callable[[nn.Module, Scoring], None]:
    """What lets heads read the batches of a run whose scoring they read."""

    def prepare(base: nn.Module, scoring: Scoring) -> None:
        if isinstance(scoring, Options):
            read_by_heads(config, base, scoring, config.train.cache_trunk_folder)

    return prepare


def _needed(folder: Path, adapter: Path) -> list[Path]:
    """The files without which a run is not finished; a head on frozen features has no adapter."""
    config = folder / "config.yaml"
    adapts = not config.is_file() or read_config(config).method.adapts
    return [
        config,
        adapter / "adapter_config.json" if adapts else folder / "posterior.safetensors",
        folder / "metrics.json",
    ]


def _base_model(named: ModelConfig, base_model: str | None) -> ModelConfig:
    """The base model to load: `base_model`, or the one that the run names."""
    if base_model is not None:
        return replace(named, name=base_model, revision=None)
    if named.name.startswith("./") and not Path(named.name).is_dir():
        raise FileNotFoundError(
            f"this run was trained on a base model in a folder, {named.name!r}, which is not here; put it there, or "
            "name it: bayeslora.load_run(..., base_model=FOLDER_OR_HUB_ID)."
        )
    return named


def evaluate(
    folder: str | Path,
    *,
    task: str | None = None,
    split: str = "test",
    num_samples: int | None = None,
    examples: int | None = None,
    output_dir: str | Path | None = None,
    file_layout: Mapping[str, Any] | None = None,
    device: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Score a run on a split and write metrics.json, predictions.jsonl (of texts: texts.jsonl) and reliability.png.

    Args:
        folder: The run folder, or the Hub id of a pushed run.
        task: Another task than the run's own, by name or path.
        split: "test" or "dev".
        num_samples: Posterior draws; default: the run's.
        examples: Use only this many items; default: the run's number for its own task, all for another.
        output_dir: Default: the run folder for its own task, `folder/evaluation/<task>` for another. A run on the Hub
            needs one.
        file_layout: How the task's files are read where they are not laid out as the run's own: question_column,
            choices_column, label_column, labels, id_column, group_column, choices.
        device: As `load_run`.
        overwrite: Replace the evaluation of another run, task or split in the output folder; one of the same is
            renewed anyway.

    Raises:
        FileExistsError: Another run is in the output folder, or another evaluation and not `overwrite`.
        RuntimeError: Another process writes there.
        ValueError: The split is unknown or empty, a run on the Hub has no `output_dir`, or `file_layout` is given for a
            task that is no file.
    """
    if split not in ("test", "dev"):
        raise ValueError(f"split must be 'test' or 'dev', got {split!r}.")
    if output_dir is None and is_hub_run(str(folder)):
        raise ValueError(
            f"there is no folder {str(folder)!r} here. To evaluate the run of that Hub id, say where to write the "
            "results: output_dir=FOLDER."
        )
    if task is not None:
        allow_task(task)
    run = load_run(folder, device=device)
    own = task is None or task == run.config.task.name
    described = run.config.task
    if not own:
        described = replace(described, name=str(task), train_examples=None, dev_examples=None, test_examples=None)
    if file_layout:
        described = with_file_options(described, file_layout)
        if not isinstance(build_task(described), LocalFile):
            raise ValueError(f"{', '.join(file_layout)} say how a file is read, but {described.name!r} is no file.")
    if examples is not None:
        setattr(described, f"{split}_examples", examples)
    target = Path(output_dir or (folder if own else Path(folder) / "evaluation" / Path(described.name).stem))
    with only_writer(target):
        if is_main():
            identity = run.metrics | {"task": described.name, "split": split}
            check_evaluation(target, Path(folder), identity, overwrite)
        if run.config.task.scoring == "text":
            from bayeslora.runs.language_modelling.evaluation import evaluate_texts

            metrics = evaluate_texts(run, described, split, num_samples, target)
        else:
            metrics = _evaluate(run, described, split, num_samples, target)
    parts = TEXT_EVALUATION_PARTS if run.config.task.scoring == "text" else EVALUATION_PARTS
    logger.info("written to %s: %s", target, ", ".join(parts))
    return metrics


def _evaluate(run: Run, described: TaskConfig, split: str, num_samples: int | None, target: Path) -> dict[str, Any]:
    items = getattr(task_items(described), split)
    if not items:
        raise ValueError(f"task {described.name!r} has no {split} items.")
    prediction = run.predict(items, num_samples)
    metrics = run.metrics | {"task": described.name, "split": split} | prediction.metrics()
    if run.metrics.get("split") == "dev":
        # The dev scores stand nowhere else.
        metrics["dev"] = {name: run.metrics[name] for name in prediction.metrics() if name in run.metrics}
    if is_main():
        write_evaluation(target, prediction, metrics)
    barrier()
    return metrics


def write_evaluation(target: Path, prediction: Prediction, metrics: dict[str, Any]) -> None:
    """metrics.json, predictions.jsonl and reliability.png, all or none; for the only writer of the folder."""
    labels = torch.tensor([item.label for item in prediction.items])
    curves = {str(metrics["method"]): (prediction.predictive.probabilities, labels)}
    with replaced_together(target, EVALUATION_PARTS) as aside:
        write_rows(aside / "predictions.jsonl", prediction.rows())
        reliability_diagram(curves, aside / "reliability.png", title=f"{metrics['task']} ({metrics['split']})")
        write_json(aside / "metrics.json", metrics)


def predict_file(
    folder: str | Path,
    input: str | Path,
    output: str | Path,
    *,
    num_samples: int | None = None,
    abstain_above: float | None = None,
    coverage: float | None = None,
    file_layout: Mapping[str, Any] | None = None,
    device: str | None = None,
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """Predict the items of a local file and write one JSON record each, in the input's order.

    Args:
        folder: The run folder, or the Hub id of a pushed run.
        input: JSONL, CSV or Parquet file with the run's column names; labels are optional, and those that cannot be
            read are passed over with a word in the log.
        output: JSONL file to write, atomically.
        num_samples: Posterior draws; default: the run's.
        abstain_above: Entropy in nats above which a record says `"abstain": true`.
        coverage: Add to each record a set of choices, `"set"` (indices) and `"set_choices"` (texts), that holds the
            right one with this probability in (0, 1): split-conformal, score "lac", calibrated on the dev split of the
            run's task (docs/guides/prediction_sets.md).
        file_layout: How the file is read where it is not laid out as the run's own: question_column, choices_column,
            label_column, labels, id_column, group_column, choices.
        device: As `load_run`.
        overwrite: Replace the file `output` if it is there.

    Returns:
        The records.

    Raises:
        FileExistsError: `output` is there and not `overwrite`.
        RuntimeError: Another process writes `output`.
        ValueError: `coverage` is not in (0, 1), or the run's task has no dev items to calibrate on.
    """
    if coverage is not None:
        check_coverage(coverage)
    with to_be_written(output, overwrite=overwrite):
        if Path(output).exists() and Path(output).samefile(input):
            raise FileExistsError(f"{output} is the input itself, which the predictions would replace; name another.")
        rows = _predicted_rows(
            load_run(folder, device=device), input, num_samples, abstain_above, coverage, file_layout
        )
        if is_main():
            write_rows(output, rows)
    barrier()
    return rows


def _predicted_rows(
    run: Run,
    input: str | Path,
    num_samples: int | None,
    abstain_above: float | None,
    coverage: float | None,
    file_layout: Mapping[str, Any] | None,
) -> list[dict[str, Any]]:
    columns = run.config.task
    if columns.scoring == "text":
        raise ValueError("this run writes texts and has no choices to predict; use `bayeslora generate --input FILE`.")
    items = load_items(input, **file_options(with_file_options(columns, file_layout or {})), optional_label=True)
    rule = None if coverage is None else calibrated_on_dev(run, coverage, num_samples)
    return list(run.predict(items, num_samples).rows(abstain_above, rule))

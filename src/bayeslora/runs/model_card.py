"""The README.md of an adapter: what it is, how calibrated it was measured to be, how to load it, and its limits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import ChainableUndefined, Environment, PackageLoader

from bayeslora.adapters import RandomLoraConfig
from bayeslora.metrics import ReliabilityCurve
from bayeslora.prediction.temperature import bound_of
from bayeslora.report.text import markdown_table
from bayeslora.runs.config import RunConfig
from bayeslora.system.files import write_file
from bayeslora.tasks import TaskError, get_task

_COLUMNS = ("accuracy", "nll", "ece", "brier", "num_examples", "num_samples")
_METRICS = ("accuracy", "nll", "ece", "brier")
_TEXT_COLUMNS = ("perplexity", *_COLUMNS, "num_tokens")
_ORIGINS = {
    "offline:smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "offline:minilm": "sentence-transformers/all-MiniLM-L6-v2",
}
"""Where the models come from that registry packages carry."""


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card says beyond the run's config and metrics.

    Args:
        place: What to give a loader: a Hub id, or FOLDER.
        datasets: Hub ids of the training data; default: that of a built-in task.
        license: Of the adapter, an identifier of the Hub such as "apache-2.0"; "unknown" where nobody has chosen one.
        baseline: Metrics of another run on the same items, such as plain LoRA's, for a row of the table.
        curve: Reliability of the predictions that the metrics belong to.
        picture: Whether reliability.png lies beside the card.
        files: Names of the files beside the card.
        classes: Width of a classification head.
    """

    place: str = "FOLDER"
    datasets: Sequence[str] | None = None
    license: str = "unknown"
    baseline: Mapping[str, Any] | None = None
    curve: ReliabilityCurve | None = None
    picture: bool = False
    files: Sequence[str] = field(default_factory=tuple)
    classes: int | None = None


def write_model_card(
    folder: Path, config: RunConfig, metrics: Mapping[str, Any], facts: CardFacts | None = None
) -> None:
    """Write `folder/README.md`."""
    write_file(folder / "README.md", str(model_card(config, metrics, facts or CardFacts())))


def model_card(config: RunConfig, metrics: Mapping[str, Any], facts: CardFacts) -> ModelCard:
    """The card of a run.

    Args:
        config: The run's, with the names under which others find its base model and data.
        metrics: Those of metrics.json.
        facts: The rest.
    """
    data = _metadata(config, metrics, facts).to_yaml()
    return ModelCard(f"---\n{data}\n---\n\n{_text(config, metrics, facts)}")


# --- metadata ----------------------------------------------------------------------------------------------------


def _metadata(config: RunConfig, metrics: Mapping[str, Any], facts: CardFacts) -> ModelCardData:
    classifies = config.task.scoring == "classification"
    base = _ORIGINS.get(config.model.name, config.model.name)
    datasets = list(facts.datasets if facts.datasets is not None else _hub_datasets(config.task.name))
    evaluated = "accuracy" in metrics
    return ModelCardData(
        # A folder of somebody's machine is no model of the Hub.
        base_model=None if base.startswith("./") or Path(base).is_absolute() else base,
        library_name="peft",
        license=facts.license,
        tags=["bayeslora", "lora", config.method.name, "uncertainty", "calibration"],
        pipeline_tag="text-classification" if classifies else "text-generation",
        datasets=datasets or None,
        metrics=["accuracy"] if evaluated else None,
        model_name=facts.place.rpartition("/")[2] if evaluated else None,
        eval_results=_eval_results(config, metrics, datasets) if evaluated else None,
    )


def _eval_results(config: RunConfig, metrics: Mapping[str, Any], datasets: Sequence[str]) -> list[EvalResult]:
    task = _file_name(str(metrics["task"]))
    return [
        EvalResult(
            task_type=_task_type(config),
            dataset_type=datasets[0] if datasets and metrics["task"] == config.task.name else "local",
            dataset_name=task,
            dataset_split=metrics["split"],
            metric_type=name,
            metric_name=f"{name}, {_draws(metrics)}",
            metric_value=round(float(metrics[name]), 6),
        )
        for name in _METRICS
    ]


def _task_type(config: RunConfig) -> str:
    types = {"classification": "text-classification", "text": "text-generation"}
    return types.get(config.task.scoring, "multiple-choice")


def _hub_datasets(task: str) -> list[str]:
    try:
        found = getattr(get_task(task), "hub_id", "")
    except TaskError:
        return []
    return [found] if found else []


# --- text --------------------------------------------------------------------------------------------------------


def _text(config: RunConfig, metrics: Mapping[str, Any], facts: CardFacts) -> str:
    environment = Environment(
        loader=PackageLoader("bayeslora.runs"),
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["file_name"] = _file_name
    classifies = config.task.scoring == "classification"
    is_random = issubclass(config.method.config_class, RandomLoraConfig)
    return environment.get_template("model_card.md.j2").render(
        config=config,
        metrics=metrics,
        facts=facts,
        evaluated="accuracy" in metrics,
        results=_results_table(metrics, facts) if "accuracy" in metrics else "",
        calibration="" if facts.curve is None else _calibration_table(facts.curve),
        training=_training_table(config, metrics),
        on_hub=facts.place != "FOLDER",
        is_folder=config.model.name.startswith("./"),
        is_text=config.task.scoring == "text",
        classifies=classifies,
        classes=", ".join(json.dumps(name) for name in config.task.classes or ("name of class 0", "name of class 1")),
        head="SequenceClassification" if classifies else "CausalLM",
        labels=f", num_labels={facts.classes}" if classifies else "",
        peft_type=config.method.config_class().peft_type if is_random else "",
        temperature=_temperature(metrics) if "temperature" in metrics else "",
        bound=bound_of(metrics),
    )


def _results_table(metrics: Mapping[str, Any], facts: CardFacts) -> str:
    rows = [] if facts.baseline is None else [(f"{facts.baseline['method']} (for comparison)", facts.baseline)]
    rows.append((f"**{metrics['method']}**, {_draws(metrics)}", metrics))
    columns = _TEXT_COLUMNS if "perplexity" in metrics else _COLUMNS
    return markdown_table(["", *columns], [[title, *(_cell(row[name]) for name in columns)] for title, row in rows])


def _calibration_table(curve: ReliabilityCurve) -> str:
    bins = len(curve.count)
    rows = []
    columns = zip(curve.count.tolist(), curve.confidence.tolist(), curve.accuracy.tolist(), strict=True)
    for index, (count, confidence, accuracy) in enumerate(columns):
        if count:
            edges = f"{index / bins:.2f} to {(index + 1) / bins:.2f}"
            rows.append([edges, str(count), f"{confidence:.3f}", f"{accuracy:.3f}"])
    return markdown_table(["confidence", "items", "mean confidence", "accuracy"], rows)


def _training_table(config: RunConfig, metrics: Mapping[str, Any]) -> str:
    unit = "texts" if config.task.scoring == "text" else "items"
    facts = {
        "base model": _base_sentence(config.model.name),
        "data": f"`{_file_name(config.task.name)}`, {metrics['train_examples']} {unit}, {config.task.scoring} scoring",
        "method": f"{type(config.method).__name__}, rank {config.method.r}",
        "trainable parameters": f"{metrics['trainable_parameters']:,}",
        "training time": f"{metrics['train_seconds']:.0f} s",
    }
    return markdown_table(["", ""], list(facts.items()))


def _base_sentence(name: str) -> str:
    if name in _ORIGINS:
        return f"`{name}`, made from {_ORIGINS[name]}, in a registry package that `bayeslora.models` reads"
    if name.startswith("./"):
        return f"a folder, `{name}`, that is not published; name yours with `load_run(..., base_model=FOLDER)`"
    return f"`{_file_name(name)}`"


# --- words -------------------------------------------------------------------------------------------------------


def _draws(metrics: Mapping[str, Any]) -> str:
    count = metrics.get("num_samples", 0)
    return f"{_cell(count)} samples" if count else "point estimate"


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _file_name(name: str) -> str:
    """The last part of a path of this machine; other names as they are."""
    return f"./{Path(name).name}" if Path(name).is_absolute() else name


def _temperature(metrics: Mapping[str, Any]) -> str:
    """With its standard error, where that is known."""
    error = metrics.get("temperature_standard_error")
    return f"{metrics['temperature']:.4g}" + (f" ± {error:.2g}" if error else "")

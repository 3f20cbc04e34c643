"""The README.md of an adapter: what it is, how calibrated it was measured to be, how to load it, and its limits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from bayeslora.adapters import RandomLoraConfig
from bayeslora.metrics import ReliabilityCurve
from bayeslora.prediction.temperature import bound_of
from bayeslora.runs.config import RunConfig
from bayeslora.system.files import atomic_file
from bayeslora.tasks import TaskError, get_task

__all__ = ["CardFacts", "model_card", "write_model_card"]

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
    with atomic_file(folder / "README.md") as aside:
        aside.write_text(str(model_card(config, metrics, facts or CardFacts())), encoding="utf-8")


def model_card(config: RunConfig, metrics: Mapping[str, Any], facts: CardFacts) -> ModelCard:
    """The card of a run.

    Args:
        config: The run's, with the names under which others find its base model and data.
        metrics: Those of metrics.json.
        facts: The rest.
    """
    sections = [
        _introduction(config, metrics),
        _results(metrics, facts),
        _loading(config, facts),
        _training(config, metrics),
        _limits(config, metrics, facts),
    ]
    data = _metadata(config, metrics, facts).to_yaml()
    return ModelCard(f"---\n{data}\n---\n\n" + "\n\n".join(section for section in sections if section) + "\n")


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


# --- sections ----------------------------------------------------------------------------------------------------


def _introduction(config: RunConfig, metrics: Mapping[str, Any]) -> str:
    prompts = " in the tokenizer's chat template" if metrics.get("chat_template") else ""
    return (
        f"# {metrics['method']} adapter for {_file_name(config.model.name)}\n\n"
        f"Trained with bayeslora on `{_file_name(config.task.name)}` "
        f"({config.task.scoring} scoring{prompts}, {metrics['train_examples']} examples, seed {metrics['seed']})."
    )


def _results(metrics: Mapping[str, Any], facts: CardFacts) -> str:
    if "accuracy" not in metrics:
        return "## Results\n\nIt was not evaluated."
    rows = [] if facts.baseline is None else [(f"{facts.baseline['method']} (for comparison)", facts.baseline)]
    rows.append((f"**{metrics['method']}**, {_draws(metrics)}", metrics))
    columns = _TEXT_COLUMNS if "perplexity" in metrics else _COLUMNS
    parts = [
        f"## Results\n\nOn the {metrics['split']} split of `{_file_name(str(metrics['task']))}`:",
        "\n".join(
            [
                f"| | {' | '.join(columns)} |",
                f"|---|{'---|' * len(columns)}",
                *(f"| {title} | {' | '.join(_cell(row[name]) for name in columns)} |" for title, row in rows),
            ]
        ),
        "`nll` is the negative log-likelihood in nats, `ece` the expected calibration error over 15 bins of equal "
        "width; both and `brier` are better when lower.",
    ]
    if "perplexity" in metrics:
        parts.append("All of them, and the perplexity, are per token of the texts that the model had to write.")
    if facts.curve is not None:
        parts.append(
            "### Calibration\n\nThe share of right answers among items of similar confidence; a calibrated model is "
            "right as often as it is confident:\n\n" + _calibration_table(facts.curve)
        )
    if facts.picture:
        parts.append("![Reliability diagram: accuracy against confidence](reliability.png)")
    return "\n\n".join(parts)


def _calibration_table(curve: ReliabilityCurve) -> str:
    bins = len(curve.count)
    lines = ["| confidence | items | mean confidence | accuracy |", "|---|---|---|---|"]
    columns = zip(curve.count.tolist(), curve.confidence.tolist(), curve.accuracy.tolist(), strict=True)
    for index, (count, confidence, accuracy) in enumerate(columns):
        if count:
            edges = f"{index / bins:.2f} to {(index + 1) / bins:.2f}"
            lines.append(f"| {edges} | {count} | {confidence:.3f} | {accuracy:.3f} |")
    return "\n".join(lines)


def _loading(config: RunConfig, facts: CardFacts) -> str:
    parts = ["## How to load"]
    if config.model.merge:
        parts.append(
            "The adapter belongs on its base model with other adapters merged into the weights (`model.merge` in "
            "`config.yaml`): `bayeslora.load_run` of the run folder does that, PEFT alone does not."
        )
        return "\n\n".join(parts)
    on_hub = facts.place != "FOLDER"
    if on_hub:
        parts.append(f"```python\n{_predicting(config, facts.place)}\n```")
        parts.append(f"```console\nbayeslora evaluate {facts.place} --output_dir evaluation\n```")
    parts.append("With PEFT:" if on_hub else "")
    parts.append(f"```python\n{_with_peft(config, facts)}\n```")
    if _is_random(config):
        parts.append(
            "Without `import bayeslora` PEFT does not know the type of this adapter and says "
            f"`KeyError: '{config.method.config_class().peft_type}'`. In eval mode the model is the posterior mean; "
            "`bayeslora.predict(model, batch, num_samples=10, seed=0)` averages draws."
        )
    return "\n\n".join(part for part in parts if part)


def _predicting(config: RunConfig, place: str) -> str:
    base = f', base_model="{config.model.name}"' if config.model.name.startswith("./") else ""
    if config.task.scoring == "text":
        return "\n".join(
            [
                "import bayeslora",
                "from bayeslora.runs.generate import generate_records",
                "",
                f'run = bayeslora.load_run("{place}"{base})  # the adapter on its base model',
                "prompts = [{'prompt': 'Which gas do plants take in?'}]",
                f"for record in generate_records(run, prompts, raw={config.task.raw}):",
                "    print(record['text'], record['mutual_information'])  # nats, token by token",
            ]
        )
    lines = [
        "import bayeslora",
        "from bayeslora.tasks import Item",
        "",
        f'run = bayeslora.load_run("{place}"{base})  # the adapter on its base model',
    ]
    if config.task.scoring == "classification":
        classes = ", ".join(json.dumps(name) for name in config.task.classes or ("name of class 0", "name of class 1"))
        lines.append(f'item = Item("1", "A text to classify.", ({classes}), None)')
    else:
        lines.append('item = Item("1", "Which gas do plants take in?", ("oxygen", "carbon dioxide"), None)')
    return "\n".join(
        [
            *lines,
            "predictive = run.predict([item]).predictive",
            "print(predictive.probabilities, predictive.entropy, predictive.mutual_information)  # nats",
        ]
    )


def _with_peft(config: RunConfig, facts: CardFacts) -> str:
    classifies = config.task.scoring == "classification"
    name = config.model.name
    labels = f", num_labels={facts.classes}" if classifies else ""
    head = "SequenceClassification" if classifies else "CausalLM"
    lines = ["import bayeslora  # before PEFT loads it: registers the adapter type"] if _is_random(config) else []
    if facts.place == "FOLDER":
        auto = f"AutoPeftModelFor{head}"
        return "\n".join([*lines, f"from peft import {auto}", "", f"model = {auto}.from_pretrained(FOLDER{labels})"])
    lines.append("from peft import PeftModel")
    if name.startswith("offline:"):
        kind = ', kind="sequence_classification"' if classifies else ""
        lines += ["from bayeslora.models import load_base_model", ""]
        lines.append(f'base, tokenizer = load_base_model("{name}"{kind}{labels})')
    else:
        auto = f"AutoModelFor{head}"
        lines += [f"from transformers import {auto}", "", f'base = {auto}.from_pretrained("{name}"{labels})']
    return "\n".join([*lines, f'model = PeftModel.from_pretrained(base, "{facts.place}")'])


def _training(config: RunConfig, metrics: Mapping[str, Any]) -> str:
    unit = "texts" if config.task.scoring == "text" else "items"
    facts = {
        "base model": _base_sentence(config.model.name),
        "data": f"`{_file_name(config.task.name)}`, {metrics['train_examples']} {unit}, {config.task.scoring} scoring",
        "method": f"{type(config.method).__name__}, rank {config.method.r}",
        "trainable parameters": f"{metrics['trainable_parameters']:,}",
        "training time": f"{metrics['train_seconds']:.0f} s",
    }
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())])
    return f"## Training\n\n{table}\n\nEvery option is in `config.yaml`, which `bayeslora train --config` reads."


def _base_sentence(name: str) -> str:
    if name in _ORIGINS:
        return f"`{name}`, made from {_ORIGINS[name]}, in a registry package that `bayeslora.models` reads"
    if name.startswith("./"):
        return f"a folder, `{name}`, that is not published; name yours with `load_run(..., base_model=FOLDER)`"
    return f"`{_file_name(name)}`"


def _limits(config: RunConfig, metrics: Mapping[str, Any], facts: CardFacts) -> str:
    limits = []
    if "accuracy" in metrics:
        limits.append(
            f"The numbers are of {metrics['num_examples']} items of one split and one seed. With few items the ECE is "
            "noisy and too high on average; on other data or other prompts the calibration may be another."
        )
    limits.append(
        "The uncertainty is that of the adapter's weights given its training data. What the base model has wrong, all "
        "draws have wrong together."
    )
    if metrics.get("num_samples"):
        limits.append(
            f"The numbers hold for the average over {metrics['num_samples']} draws, not for the posterior mean that "
            "PEFT gives by itself."
        )
    if metrics.get("temperature", 1) != 1:
        limits.append(
            f"The numbers include a temperature of {_temperature(metrics)}, which `bayeslora.load_run` applies "
            "and PEFT does not."
        )
    if meaning := bound_of(metrics):
        limits.append(f"That temperature is at a bound of its search: the scaled model {meaning}.")
    if "posterior.safetensors" in facts.files:
        limits.append(
            "`posterior.safetensors` holds what the method knows beyond the adapter; only `load_run` reads it."
        )
    if facts.license == "unknown":
        limits.append("Nobody has chosen a licence for the adapter. The licence of the base model binds in any case.")
    return "\n".join(["## Limits", "", *(f"- {limit}" for limit in limits)])


# --- words -------------------------------------------------------------------------------------------------------


def _is_random(config: RunConfig) -> bool:
    return issubclass(config.method.config_class, RandomLoraConfig)


def _draws(metrics: Mapping[str, Any]) -> str:
    count = metrics.get("num_samples", 0)
    return f"{count} samples" if count else "point estimate"


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _file_name(name: str) -> str:
    """The last part of a path of this machine; other names as they are."""
    return f"./{Path(name).name}" if Path(name).is_absolute() else name


def _temperature(metrics: Mapping[str, Any]) -> str:
    """With its standard error, where that is known."""
    error = metrics.get("temperature_standard_error")
    return f"{metrics['temperature']:.4g}" + (f" ± {error:.2g}" if error else "")

"""Train, evaluate and predict: what the command line does, as functions of a config and a run folder.

A run folder holds `adapter/` (PEFT), `config.yaml` (enough to run again), `metrics.json`, and after an evaluation
`predictions.jsonl` and `reliability.png`.
"""

from __future__ import annotations

import json
import logging
import math
import random
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase, TrainingArguments, set_seed

from bayeslora.config import ModelConfig, RunConfig, TaskConfig
from bayeslora.methods import trainable_parameters
from bayeslora.metrics import summary
from bayeslora.model_card import write_model_card
from bayeslora.models import load_base_model
from bayeslora.plots import reliability_diagram
from bayeslora.predictive import Predictive
from bayeslora.saving import atomic_file, recover_folder, save_adapter, write_json
from bayeslora.scoring import Scoring, get_scoring
from bayeslora.tasks import Item, LocalFile, Splits, Task, get_task, load_items
from bayeslora.trainer import BayesianLoraTrainer
from bayeslora.trunk import TrunkCache

__all__ = ["Prediction", "evaluate", "load_run", "predict_file", "predict_items", "task_items", "train"]

logger = logging.getLogger("bayeslora")


# --- items -----------------------------------------------------------------------------------------------------------


def build_task(config: TaskConfig) -> Task:
    """The task of a config: built in, or a local file with its column names.

    Raises:
        TaskError: The task, the file or a column does not exist; the message has the nearest right one.
    """
    task = get_task(config.name)
    if isinstance(task, LocalFile):
        task = LocalFile(
            task.train,
            dev=task.dev,
            test=task.test,
            name=task.name,
            question_column=config.question_column,
            choices_column=config.choices_column,
            label_column=config.label_column,
            id_column=config.id_column,
            choices=config.choices,
        )
    return task


def task_items(config: TaskConfig) -> Splits:
    """The splits of a config's task, cut to the numbers of examples it asks for."""
    splits = build_task(config).splits(source=config.source)
    parts = {
        name: _subset(getattr(splits, name), getattr(config, f"{name}_examples"), config.subset_seed)
        for name in ("train", "dev", "test")
    }
    return Splits(**parts)


def _subset(items: list[Item], count: int | None, seed: int) -> list[Item]:
    if count is not None and count < 1:
        raise ValueError(f"the number of examples must be at least 1, got {count}.")
    if count is None or count >= len(items):
        return items
    return random.Random(seed).sample(items, count)


# --- models ----------------------------------------------------------------------------------------------------------


def load_model(
    config: ModelConfig, task: TaskConfig, num_labels: int | None = None
) -> tuple[nn.Module, PreTrainedTokenizerBase, Scoring]:
    """The base model, its tokenizer, and the scoring that reads it."""
    scoring = get_scoring(task.scoring)
    model, tokenizer = load_base_model(
        config.name,
        kind=scoring.kind,  # type: ignore[arg-type]
        dtype=_dtype(config),
        device=config.device,
        revision=config.revision,
        num_labels=num_labels if scoring.kind == "sequence_classification" else None,
    )
    positions = getattr(model.config, "max_position_embeddings", None) or task.max_length
    return model, tokenizer, scoring(tokenizer, max_length=min(task.max_length, positions))


def _dtype(config: ModelConfig) -> Any:
    """float32 where bfloat16 would be emulated: that is about three times slower than float32 on such a CPU."""
    on_cpu = config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available())
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "float32" if config.dtype == "auto" and on_cpu and not native else config.dtype


# --- training --------------------------------------------------------------------------------------------------------


@dataclass
class Trained:
    """What training leaves in memory."""

    model: PeftModel
    scoring: Scoring
    trunk_cache: TrunkCache | None
    splits: Splits
    metrics: dict[str, Any]


def train(
    config: RunConfig,
    output_dir: str | Path,
    *,
    resume: bool = False,
    evaluate_dev: bool = True,
    trunk_cache: TrunkCache | None = None,
) -> Trained:
    """Train an adapter and write `adapter/`, `config.yaml` and `metrics.json` (on the dev split) to `output_dir`.

    Args:
        config: The run.
        output_dir: The run folder.
        resume: Go on from the newest complete checkpoint in `output_dir/checkpoints`, if there is one.
        evaluate_dev: Whether to predict the dev split at the end.
        trunk_cache: That of another run on the same base model and layers, to read and add to.

    Raises:
        NonFiniteLossError: The loss became NaN or infinite; checkpoints and an earlier adapter are left as they were.
    """
    output = Path(output_dir)
    recover_folder(output / "adapter")
    splits = task_items(config.task)
    if not splits.train:
        raise ValueError(f"task {config.task.name!r} has no training items; it is for evaluation only.")
    set_seed(config.seed)
    width = max(len(item.choices) for part in (splits.train, splits.dev, splits.test) for item in part)
    base, _, scoring = load_model(config.model, config.task, num_labels=width)
    set_seed(config.seed)
    model = config.method.adapt(base, scoring.kind)  # type: ignore[arg-type]
    trunk_cache = trunk_cache.rebind(model) if trunk_cache is not None else _trunk_cache(config, model)
    if not resume:
        _set_aside(output / "checkpoints")
    trainer = _trainer(config, output, model, scoring, splits, trunk_cache)
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=resume)
    seconds = time.perf_counter() - started
    metrics: dict[str, Any] = {
        "method": config.method.name,
        "task": config.task.name,
        "scoring": config.task.scoring,
        "model": config.model.name,
        "seed": config.seed,
        "train_examples": len(splits.train),
        "train_seconds": round(seconds, 2),
        "trainable_parameters": trainable_parameters(model),
        "history": [entry for entry in trainer.state.log_history if "nll" in entry],
    }
    save_adapter(model, output / "adapter")
    write_config(config, output / "config.yaml")
    if evaluate_dev and splits.dev:
        prediction = predict_items(config, model, scoring, splits.dev, trunk_cache=trunk_cache)
        metrics |= prediction.metrics() | {"split": "dev"}
    write_model_card(output / "adapter", config, metrics)
    write_json(output / "metrics.json", metrics)
    return Trained(model, scoring, trunk_cache, splits, metrics)


def _set_aside(checkpoints: Path) -> None:
    """Keep an earlier run's checkpoints under another name: a later resume must not take them for this run's."""
    previous = checkpoints.with_name("checkpoints.previous")
    if checkpoints.exists():
        shutil.rmtree(previous, ignore_errors=True)
        checkpoints.rename(previous)


def _trunk_cache(config: RunConfig, model: PeftModel) -> TrunkCache | None:
    if not config.train.cache_trunk:
        return None
    cache = TrunkCache(model)
    if cache.skipped:
        logger.info("caching the output of the %d frozen layers below the first adapter", cache.skipped)
    return cache if cache.skipped else None


def _trainer(
    config: RunConfig,
    output: Path,
    model: PeftModel,
    scoring: Scoring,
    splits: Splits,
    trunk_cache: TrunkCache | None,
) -> BayesianLoraTrainer:
    options = config.train
    per_step = options.batch_size * options.gradient_accumulation_steps
    steps = options.max_steps or max(1, math.ceil(options.epochs * math.ceil(len(splits.train) / per_step)))
    arguments = TrainingArguments(
        output_dir=str(output / "checkpoints"),
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        learning_rate=options.learning_rate,
        lr_scheduler_type=options.lr_scheduler,
        warmup_steps=options.warmup,
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        logging_steps=min(options.logging_steps, steps),
        save_strategy="epoch" if options.save_steps is None else "steps",
        save_steps=options.save_steps or 500,
        save_total_limit=2,
        report_to=options.report_to,
        seed=config.seed,
        use_cpu=next(model.parameters()).device.type == "cpu",
        # Items are not columns of tensors: the scoring reads them whole.
        remove_unused_columns=False,
        **options.arguments,
    )
    # One process drives one device: DataParallel's replicas would have no parameters to draw from.
    arguments._n_gpu = min(1, arguments.n_gpu)
    if config.model.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return BayesianLoraTrainer(
        model=model,
        args=arguments,
        train_dataset=splits.train,
        data_collator=scoring,
        trunk_cache=trunk_cache,
        **config.method.trainer_options(options.learning_rate, steps),
    )


# --- prediction ------------------------------------------------------------------------------------------------------


@dataclass
class Prediction:
    """Predictive distributions of items, in their order."""

    items: Sequence[Item]
    predictive: Predictive
    num_samples: int
    seconds: float

    def metrics(self) -> dict[str, Any]:
        """Scores on the items, which all need labels; `spread` is the mean of `Predictive.spread`."""
        labels = torch.tensor([item.label for item in self.items])
        scores: dict[str, Any] = dict(summary(self.predictive.probabilities, labels))
        return scores | {
            "num_samples": self.num_samples,
            "predict_seconds": round(self.seconds, 2),
            "spread": float(self.predictive.spread.mean()),
        }

    def rows(self, abstain_above: float | None = None) -> Iterator[dict[str, Any]]:
        """One record per item for predictions.jsonl; entropies in nats."""
        probabilities = self.predictive.probabilities
        uncertainty = zip(self.predictive.entropy.tolist(), self.predictive.mutual_information.tolist(), strict=True)
        for item, row, (entropy, information) in zip(self.items, probabilities.tolist(), uncertainty, strict=True):
            chosen = row[: len(item.choices)]
            best = max(range(len(chosen)), key=chosen.__getitem__)
            record: dict[str, Any] = {
                "id": item.id,
                "probabilities": chosen,
                "prediction": best,
                "choice": item.choices[best],
                "confidence": chosen[best],
                "entropy": entropy,
                "mutual_information": information,
            }
            if item.label is not None:
                record["label"] = item.label
            if abstain_above is not None:
                record["abstain"] = entropy > abstain_above
            yield record


def predict_items(
    config: RunConfig,
    model: nn.Module,
    scoring: Scoring,
    items: Sequence[Item],
    *,
    trunk_cache: TrunkCache | None = None,
    num_samples: int | None = None,
) -> Prediction:
    """Predict `items` with the method of `config`; items of similar length share a batch."""
    samples = config.method.samples_used(config.num_samples if num_samples is None else num_samples)
    order = sorted(range(len(items)), key=lambda index: _length(items[index]))
    device = next(model.parameters()).device
    started, parts = time.perf_counter(), []
    for first in tqdm(range(0, len(order), config.batch_size), desc="predict", unit="batch", leave=False):
        batch = scoring([items[index] for index in order[first : first + config.batch_size]]).to(device)
        predictive = config.method.predict(model, batch, samples, config.seed, trunk_cache)
        parts.append(Predictive(predictive.samples.cpu()))
    joined = Predictive.concatenate(parts)
    back = torch.tensor(sorted(range(len(order)), key=order.__getitem__))
    return Prediction(items, Predictive(joined.samples[:, back]), samples, time.perf_counter() - started)


def _length(item: Item) -> int:
    return len(item.question) + sum(map(len, item.choices))


# --- a finished run --------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """A run folder, loaded."""

    config: RunConfig
    model: PeftModel
    scoring: Scoring
    metrics: dict[str, Any]


def load_run(folder: str | Path) -> Run:
    """Load the adapter of a run folder on its base model, in eval mode.

    Raises:
        FileNotFoundError: The folder is not a run folder.
        ValueError: The adapter belongs to another base model, or was written by a newer version.
    """
    folder = Path(folder)
    recover_folder(folder / "adapter")
    for name in ("config.yaml", "adapter/adapter_config.json", "metrics.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} is not a finished run: {name} is missing. Expected the --output_dir of `bayeslora train`."
            )
    config = read_config(folder / "config.yaml")
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    base, _, scoring = load_model(config.model, config.task, num_labels=_head_width(folder / "adapter"))
    model = PeftModel.from_pretrained(base, str(folder / "adapter"))
    return Run(config, model, scoring, metrics)


def _head_width(adapter: Path) -> int | None:
    """Classes of the saved classification head, if the adapter holds one."""
    from safetensors import safe_open

    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        for key in file.keys():  # noqa: SIM118
            if key.endswith((".classifier.weight", ".score.weight", ".out_proj.weight")):
                return int(file.get_slice(key).get_shape()[0])
    return None


def evaluate(
    folder: str | Path,
    *,
    task: str | None = None,
    split: str = "test",
    num_samples: int | None = None,
    examples: int | None = None,
    output_dir: str | Path | None = None,
) -> dict[str, Any]:
    """Score a run on a split and write metrics.json, predictions.jsonl and reliability.png.

    Args:
        folder: The run folder.
        task: Another task than the run's own, by name or path.
        split: "test" or "dev".
        num_samples: Posterior draws; default: the run's.
        examples: Use only this many items; default: the run's number for its own task, all for another.
        output_dir: Default: the run folder for its own task, `folder/evaluation/<task>` for another.

    Raises:
        ValueError: The split is unknown or empty.
    """
    if split not in ("test", "dev"):
        raise ValueError(f"split must be 'test' or 'dev', got {split!r}.")
    run = load_run(folder)
    own = task is None or task == run.config.task.name
    described = run.config.task
    if not own:
        described = replace(described, name=str(task), train_examples=None, dev_examples=None, test_examples=None)
    if examples is not None:
        setattr(described, f"{split}_examples", examples)
    items = getattr(task_items(described), split)
    if not items:
        raise ValueError(f"task {described.name!r} has no {split} items.")
    prediction = predict_items(run.config, run.model, run.scoring, items, num_samples=num_samples)
    target = Path(output_dir or (folder if own else Path(folder) / "evaluation" / Path(described.name).stem))
    metrics = run.metrics | {"task": described.name, "split": split} | prediction.metrics()
    if run.metrics.get("split") == "dev":
        # The dev scores stand nowhere else.
        metrics["dev"] = {name: run.metrics[name] for name in prediction.metrics()}
    write_evaluation(target, prediction, metrics)
    return metrics


def write_evaluation(target: Path, prediction: Prediction, metrics: dict[str, Any]) -> None:
    """metrics.json, predictions.jsonl and reliability.png, each atomically."""
    write_rows(target / "predictions.jsonl", prediction.rows())
    labels = torch.tensor([item.label for item in prediction.items])
    curves = {str(metrics["method"]): (prediction.predictive.probabilities, labels)}
    reliability_diagram(curves, target / "reliability.png", title=f"{metrics['task']} ({metrics['split']})")
    write_json(target / "metrics.json", metrics)


def predict_file(
    folder: str | Path,
    input: str | Path,
    output: str | Path,
    *,
    num_samples: int | None = None,
    abstain_above: float | None = None,
) -> int:
    """Predict the items of a local file and write one JSON record each, in the input's order.

    Args:
        folder: The run folder.
        input: JSONL, CSV or Parquet file with the run's column names; labels are optional.
        output: JSONL file to write, atomically.
        num_samples: Posterior draws; default: the run's.
        abstain_above: Entropy in nats above which a record says `"abstain": true`.

    Returns:
        Number of items.
    """
    run = load_run(folder)
    columns = run.config.task
    items = load_items(
        input,
        question_column=columns.question_column,
        choices_column=columns.choices_column,
        label_column=columns.label_column,
        id_column=columns.id_column,
        choices=columns.choices,
        optional_label=True,
    )
    prediction = predict_items(run.config, run.model, run.scoring, items, num_samples=num_samples)
    write_rows(output, prediction.rows(abstain_above))
    return len(items)


def write_rows(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """JSONL, atomically."""
    with atomic_file(path) as aside, open(aside, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")


# --- config files ----------------------------------------------------------------------------------------------------


def write_config(config: RunConfig, path: Path) -> None:
    """The config as YAML that `bayeslora train --config` reads."""
    from bayeslora.cli import dump_config

    with atomic_file(path) as aside:
        aside.write_text(dump_config(config), encoding="utf-8")


def read_config(path: Path) -> RunConfig:
    """The config of a YAML file."""
    from bayeslora.cli import parse_config

    return parse_config(path)

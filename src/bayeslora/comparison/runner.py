"""Runs a comparison: what is in the results file already is not computed again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bayeslora.comparison.config import CompareConfig
from bayeslora.comparison.results import Cell, Header, Items, Predictions, Results, Stage
from bayeslora.config import ModelConfig
from bayeslora.metrics import accuracy, nll, summary
from bayeslora.runs import Prediction, Run, load_run, task_items, train
from bayeslora.runs.training import open_trunk_cache
from bayeslora.tasks import Item, Splits
from bayeslora.temperature import fit_temperature
from bayeslora.trunk import TrunkCache

__all__ = ["Progress", "cell_of", "compare", "device_in_words", "items_record", "without_storage"]

logger = logging.getLogger("bayeslora")


@dataclass(frozen=True)
class _Place:
    """One cell that is wanted."""

    task: str
    title: str
    seed: int
    learning_rate: float | None
    """None: the one that selection finds."""
    stage: Stage


def compare(config: CompareConfig, output_dir: str | Path, described: dict[str, Any]) -> Results:
    """Train, select and test every row of every task with every seed, into `output_dir/results.jsonl`.

    Each cell is on the disk when it ends; a comparison that was killed goes on where it stopped. A cell that fails is
    logged and left out, and the others go on; the next call tries it again.

    Args:
        config: The comparison.
        output_dir: Folder for the results file and the runs (adapters, checkpoints) that it is made of.
        described: The config as JSON, for the file's header.

    Returns:
        The results, open for reading.

    Raises:
        ValueError: The folder holds the results of another config.
        RuntimeError: Cells failed; the message names them.
    """
    output = Path(output_dir)
    comparison = _Comparison(config, output, described)
    failed = comparison.run()
    if failed:
        raise RuntimeError(
            f"{len(failed)} cells failed: {'; '.join(failed)}. The others are in {output / 'results.jsonl'}; run the "
            "same command again to try them once more."
        )
    return Results.read(output / "results.jsonl")


class _Comparison:
    def __init__(self, config: CompareConfig, output: Path, described: dict[str, Any]):
        self.config, self.output = config, output
        self.splits = {title: task_items(task) for title, task in config.tasks.items()}
        self.outside = {title: task_items(task).test for title, task in config.out_of_distribution.items()}
        for name, items in self.outside.items():
            if not items:
                raise ValueError(f"out_of_distribution task {name!r} has no test items.")
        self.described = without_storage(described)
        self.caches: dict[int | None, TrunkCache] = {}

    def run(self) -> list[str]:
        """All cells; returns what failed."""
        failed: list[str] = []
        header = Header.now(self.described, device_in_words(self.config.model))
        with Results.open(self.output / "results.jsonl", header) as results:
            for task in self.config.tasks:
                for record in self._items(task):
                    results.append(record)
            progress = Progress(sum(1 for _ in self._places()))
            for place in self._places():
                started = time.perf_counter()
                name = f"{place.task}, {place.title}, {place.stage}, seed {place.seed}"
                try:
                    line = self._cell(place, results)
                # One broken method must not cost the others their hours.
                except Exception as error:
                    logger.exception("%s failed", name)
                    failed.append(f"{name} ({type(error).__name__}: {error})")
                    line = "failed"
                progress.step(name, line, time.perf_counter() - started)
        return failed

    def _places(self) -> Iterator[_Place]:
        """Selection first, then seed by seed, so that a comparison that is stopped early has whole seeds."""
        config = self.config
        for task in config.tasks:
            for title in config.rows:
                grid = config.grid(title)
                for rate in grid if len(grid) > 1 else []:
                    yield _Place(task, title, config.seeds[0], rate, "selection")
        for seed in config.seeds:
            for task in config.tasks:
                for title in config.rows:
                    yield _Place(task, title, seed, None, "final")

    # --- one cell --------------------------------------------------------------------------------------------------

    def _cell(self, place: _Place, results: Results) -> str | None:
        """Compute a cell and append it; None where it was there. Returns its scores in words."""
        rate = self._chosen_rate(place, results) if place.learning_rate is None else place.learning_rate
        present = results.find(place.task, place.title, place.seed, rate, place.stage)
        if present is not None:
            return None
        trained = self._trained(place, rate)
        splits = self.splits[place.task]
        parts = {"dev": splits.dev}
        if place.stage == "final":
            parts |= {"test": splits.test}
            parts |= {f"ood:{name}": items for name, items in self._outside(place.task)}
        predictions = {name: trained.predict(items) for name, items in parts.items() if items}
        cell = cell_of(trained, predictions, place.task, place.title, rate, place.stage)
        if place.stage == "final":
            sampled, deterministic = self._cost(trained, splits.test)
            items = len(splits.test[: self.config.cost_examples])
            cell = replace(cell, predict_seconds=sampled, deterministic_seconds=deterministic, predict_items=items)
        if place.stage == "final" and self.config.rows[place.title].temperature:
            results.append(_tempered(cell, predictions))
        # The row's own cell comes last: where it is there, the derived one is.
        results.append(cell)
        return _scores(predictions["test" if place.stage == "final" else "dev"])

    def _chosen_rate(self, place: _Place, results: Results) -> float:
        """The rate of the grid with the best dev score of the selection."""
        grid = self.config.grid(place.title)
        if len(grid) == 1:
            return grid[0]
        task, seed = place.task, self.config.seeds[0]
        labels = results.items(task, "dev").label_array()

        def badness(rate: float) -> tuple[float, ...]:
            cell = results.find(task, place.title, seed, rate, "selection")
            if cell is None:
                return (float("inf"),)
            probabilities = cell.predictions["dev"].padded()
            probabilities /= probabilities.sum(1, keepdims=True)
            loss = nll(probabilities, labels)
            return (loss,) if self.config.select_by == "nll" else (-accuracy(probabilities, labels), loss)

        best = min(grid, key=badness)
        if badness(best) == (float("inf"),):
            raise RuntimeError(f"no selection cell of {place.title!r} on {task} could be computed.")
        return best

    def _trained(self, place: _Place, rate: float) -> Run:
        """A run, trained or, where its folder is finished already, loaded."""
        run = self.config.run(place.task, place.title, place.seed, rate)
        folder = self.output / "runs" / f"{place.task}-{place.title}-{rate:g}-{place.seed}".replace("/", "_")
        layers = self.config.adapter.last_layers
        cache, done = self.caches.get(layers), (folder / "metrics.json").is_file()
        if done:
            trained = load_run(folder)
            trained.trunk_cache = open_trunk_cache(run, trained.model, cache)
        else:
            trained = train(run, folder, resume=True, evaluate_dev=False, trunk_cache=cache)
        if trained.trunk_cache is not None:
            self.caches[layers] = trained.trunk_cache
        return trained

    def _cost(self, trained: Run, items: Sequence[Item]) -> tuple[float, float]:
        """Seconds for a few items without the trunk cache, with the method's draws and for one deterministic pass."""
        few, cache = items[: self.config.cost_examples], trained.trunk_cache
        trained.trunk_cache = None
        try:
            sampled, deterministic = trained.predict(few), trained.predict(few, 0)
        finally:
            trained.trunk_cache = cache
        return sampled.seconds, deterministic.seconds

    # --- items -----------------------------------------------------------------------------------------------------

    def _outside(self, task: str) -> list[tuple[str, list[Item]]]:
        own, others = self.config.tasks[task].name, self.config.out_of_distribution
        return [(title, items) for title, items in self.outside.items() if others[title].name != own]

    def _items(self, task: str) -> Iterator[Items]:
        splits = self.splits[task]
        _check_splits(task, splits)
        for name, items in (("dev", splits.dev), ("test", splits.test)):
            if items:
                yield items_record(task, name, items, labelled=True)
        classes = splits.test[0].choices
        for name, items in self._outside(task):
            same = self.config.tasks[task].scoring != "classification" or items[0].choices == classes
            yield items_record(task, f"ood:{name}", items, labelled=same)


def cell_of(
    trained: Run, predictions: dict[str, Prediction], task: str, method: str, learning_rate: float, stage: Stage
) -> Cell:
    """What the results file keeps of a run and of what it predicted for each split."""
    metrics = trained.metrics
    return Cell(
        task=task,
        method=method,
        seed=trained.config.seed,
        learning_rate=learning_rate,
        stage=stage,
        num_samples=next(iter(predictions.values())).num_samples,
        train_seconds=metrics["train_seconds"],
        predict_seconds=sum(part.seconds for part in predictions.values()),
        peak_memory_bytes=metrics.get("peak_memory_bytes"),
        trainable_parameters=metrics["trainable_parameters"],
        extra_parameters=_saved_numbers(trained) - _lora_numbers(trained.model),
        details={"spread": float(predictions["dev"].predictive.spread.mean())} if "dev" in predictions else {},
        history=metrics["history"],
        predictions={name: _stored(part) for name, part in predictions.items()},
    )


def without_storage(described: dict[str, Any]) -> dict[str, Any]:
    """Where the trunk cache lies and how large it may grow define nothing, and may differ when a comparison goes on."""
    if not isinstance(train := described.get("train"), dict):
        return described
    storage = ("cache_trunk_folder", "cache_trunk_limit")
    return described | {"train": {name: value for name, value in train.items() if name not in storage}}


def _check_splits(task: str, splits: Splits) -> None:
    for name in ("train", "dev", "test"):
        if not getattr(splits, name):
            raise ValueError(f"task {task!r} has no {name} items; a comparison needs train, dev and test.")


def items_record(task: str, split: str, items: Sequence[Item], *, labelled: bool) -> Items:
    """What the results file keeps of a split; no labels where they mean something else than those trained on."""
    labels = [item.label for item in items]
    known = labelled and all(label is not None for label in labels)
    return Items(
        task=task,
        split=split,
        ids=[item.id for item in items],
        labels=[int(label) for label in labels if label is not None] if known else None,
        choices=[len(item.choices) for item in items],
    )


def _tempered(cell: Cell, predictions: dict[str, Prediction]) -> Cell:
    """The same trained adapter with a temperature fitted on dev."""
    dev = predictions["dev"]
    temperature = fit_temperature(dev.predictive, torch.tensor([item.label for item in dev.items]))
    scaled = {
        name: replace(part, predictive=part.predictive.tempered(temperature)) for name, part in predictions.items()
    }
    return replace(
        cell,
        method=f"{cell.method} + temperature",
        derived_from=cell.method,
        details=cell.details | {"temperature": temperature},
        predictions={name: _stored(part) for name, part in scaled.items()},
    )


def _stored(prediction: Prediction) -> Predictions:
    """What the results file keeps of a prediction."""
    predictive, choices = prediction.predictive, [len(item.choices) for item in prediction.items]
    return Predictions.from_arrays(predictive.probabilities, predictive.mutual_information, choices)


def _scores(prediction: Prediction) -> str:
    labels = torch.tensor([item.label for item in prediction.items])
    scores = summary(prediction.predictive.probabilities, labels)
    return "  ".join(f"{name} {scores[name]:.3f}" for name in ("accuracy", "nll", "ece"))


def _saved_numbers(trained: Run) -> int:
    """Numbers in the saved adapter and in what the method keeps beside it."""
    from peft import get_peft_model_state_dict

    adapter = get_peft_model_state_dict(trained.model)
    return sum(tensor.numel() for tensor in [*adapter.values(), *trained.state.values()])


def _lora_numbers(model: nn.Module) -> int:
    """Numbers in plain LoRA adapters of the same rank on the same layers, saved modules included."""
    from peft.tuners.lora import LoraLayer
    from peft.utils import ModulesToSaveWrapper

    total = 0
    for module in model.modules():
        if isinstance(module, LoraLayer):
            base: Any = module.get_base_layer()
            total += sum(int(rank) * (base.in_features + base.out_features) for rank in module.r.values())
        elif isinstance(module, ModulesToSaveWrapper):
            total += sum(parameter.numel() for parameter in module.modules_to_save.parameters())
    return total


def device_in_words(model: ModelConfig) -> str:
    """The device that a model of this config runs on, for the header of a results file."""
    if torch.cuda.is_available() and model.device != "cpu":
        return f"cuda: {torch.cuda.get_device_name()}"
    return f"cpu: {torch.get_num_threads()} threads"


class Progress:
    """Logs each cell and an estimate of the time left, from the mean of those computed so far."""

    def __init__(self, total: int, log: Callable[..., None] = logger.info):
        self.total, self.done, self.log = total, 0, log
        self.seconds: list[float] = []

    def step(self, name: str, line: str | None, seconds: float) -> None:
        """One cell has ended; `line` None: it was in the file."""
        self.done += 1
        if line is None:
            return
        self.seconds.append(seconds)
        left = (self.total - self.done) * sum(self.seconds) / len(self.seconds)
        self.log("[%d/%d] %s: %s  (%.0f s; about %s left)", self.done, self.total, name, line, seconds, _words(left))


def _words(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"

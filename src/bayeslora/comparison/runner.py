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
from bayeslora.comparison.selection import best_rate
from bayeslora.metrics import summary
from bayeslora.runs import Prediction, Run, load_run, task_items, train
from bayeslora.runs.training import open_trunk_cache
from bayeslora.tasks import Item, Splits
from bayeslora.temperature import fit_temperature
from bayeslora.trainer import NonFiniteLossError
from bayeslora.trunk import TrunkCache

__all__ = ["cell_folder", "compare"]

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


def compare(
    config: CompareConfig,
    output_dir: str | Path,
    described: dict[str, Any],
    stages: Sequence[Stage] = ("selection", "final"),
) -> Results:
    """Train, select and test every row of every task with every seed, into `output_dir/results.jsonl`.

    Each cell is on the disk when it ends; a comparison that was killed goes on where it stopped. A cell that fails is
    logged and left out, and the others go on; the next call tries it again.

    Args:
        config: The comparison.
        output_dir: Folder for the results file and the runs (adapters, checkpoints) that it is made of.
        described: The config as JSON, for the file's header.
        stages: Only the cells of these; "selection" alone is a sweep of learning rates, without the test split.

    Returns:
        The results, open for reading.

    Raises:
        ValueError: The folder holds the results of another config.
        RuntimeError: Cells failed; the message names them.
    """
    output = Path(output_dir)
    comparison = _Comparison(config, output, described, stages)
    failed = comparison.run()
    if failed:
        raise RuntimeError(
            f"{len(failed)} cells failed: {'; '.join(failed)}. The others are in {output / 'results.jsonl'}; run the "
            "same command again to try them once more."
        )
    return Results.read(output / "results.jsonl")


def cell_folder(output_dir: Path, task: str, title: str, learning_rate: float, seed: int) -> Path:
    """The run folder of a cell."""
    return output_dir / "runs" / f"{task}-{title}-{learning_rate:g}-{seed}".replace("/", "_")


class _Comparison:
    def __init__(self, config: CompareConfig, output: Path, described: dict[str, Any], stages: Sequence[Stage]):
        self.config, self.output, self.stages = config, output, stages
        self.splits = {title: task_items(task) for title, task in config.tasks.items()}
        self.outside = {title: task_items(task).test for title, task in config.out_of_distribution.items()}
        for name, items in self.outside.items():
            if not items:
                raise ValueError(f"out_of_distribution task {name!r} has no test items.")
        self.described = _without_storage(described)
        self.caches: dict[int | None, TrunkCache] = {}

    def run(self) -> list[str]:
        """All cells; returns what failed."""
        failed: list[str] = []
        header = Header.now(self.described, _device(self.config))
        with Results.open(self.output / "results.jsonl", header) as results:
            for task in self.config.tasks:
                for record in self._items(task):
                    results.append(record)
            progress = _Progress(sum(1 for _ in self._places()))
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
                for rate in grid if len(grid) > 1 or "final" not in self.stages else []:
                    yield _Place(task, title, config.seeds[0], rate, "selection")
        for seed in config.seeds if "final" in self.stages else []:
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
        started = time.perf_counter()
        try:
            trained = self._trained(place, rate)
        except NonFiniteLossError as error:
            if place.stage == "final":
                raise
            # A rate that is too high is a result of the selection.
            results.append(_diverged(place, rate, error, time.perf_counter() - started))
            return "diverged"
        splits = self.splits[place.task]
        parts = {"dev": splits.dev}
        if place.stage == "final":
            parts |= {"test": splits.test}
            parts |= {f"ood:{name}": items for name, items in self._outside(place.task)}
        predictions = {name: trained.predict(items) for name, items in parts.items() if items}
        cell = self._record(place, rate, trained, predictions)
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
        config = self.config
        return best_rate(results, place.task, place.title, config.seeds[0], grid, config.select_by)

    def _trained(self, place: _Place, rate: float) -> Run:
        """A run, trained or, where its folder is finished already, loaded."""
        run = self.config.run(place.task, place.title, place.seed, rate)
        folder = cell_folder(self.output, place.task, place.title, rate, place.seed)
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

    def _record(self, place: _Place, rate: float, trained: Run, predictions: dict[str, Prediction]) -> Cell:
        metrics = trained.metrics
        return Cell(
            task=place.task,
            method=place.title,
            seed=place.seed,
            learning_rate=rate,
            stage=place.stage,
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
        _check_splits(task, splits, ("train", "dev", "test") if "final" in self.stages else ("train", "dev"))
        for name, items in (("dev", splits.dev), ("test", splits.test)):
            if items:
                yield _items_record(task, name, items, labelled=True)
        classes = (splits.test or splits.dev)[0].choices
        for name, items in self._outside(task):
            same = self.config.tasks[task].scoring != "classification" or items[0].choices == classes
            yield _items_record(task, f"ood:{name}", items, labelled=same)


def _without_storage(described: dict[str, Any]) -> dict[str, Any]:
    """Where the trunk cache lies and how large it may grow define nothing, and may differ when a comparison goes on."""
    if not isinstance(train := described.get("train"), dict):
        return described
    storage = ("cache_trunk_folder", "cache_trunk_limit")
    return described | {"train": {name: value for name, value in train.items() if name not in storage}}


def _check_splits(task: str, splits: Splits, needed: Sequence[str]) -> None:
    for name in needed:
        if not getattr(splits, name):
            raise ValueError(f"task {task!r} has no {name} items; needed are {', '.join(needed)}.")


def _diverged(place: _Place, rate: float, error: NonFiniteLossError, seconds: float) -> Cell:
    """A cell without predictions."""
    return Cell(
        task=place.task,
        method=place.title,
        seed=place.seed,
        learning_rate=rate,
        stage=place.stage,
        num_samples=0,
        train_seconds=seconds,
        predict_seconds=0.0,
        trainable_parameters=0,
        details={"diverged": str(error)},
    )


def _items_record(task: str, split: str, items: Sequence[Item], *, labelled: bool) -> Items:
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


def _device(config: CompareConfig) -> str:
    if torch.cuda.is_available() and config.model.device != "cpu":
        return f"cuda: {torch.cuda.get_device_name()}"
    return f"cpu: {torch.get_num_threads()} threads"


class _Progress:
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

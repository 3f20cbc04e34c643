"""How one cell of a comparison is computed: train or load, predict, measure the cost."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bayeslora.experiments.comparison.config import CompareConfig
from bayeslora.experiments.comparison.items import ComparedItems
from bayeslora.experiments.comparison.planned_cells import PlannedCell
from bayeslora.experiments.comparison.records import Cell, Predictions, Stage
from bayeslora.methods import lora_parameters
from bayeslora.metrics import summary
from bayeslora.prediction.temperature import fit_temperature
from bayeslora.runs import Prediction, Run, load_run, train
from bayeslora.runs.beginning import check_finished
from bayeslora.runs.config import RunConfig
from bayeslora.runs.training import open_trunk_cache
from bayeslora.scoring.trunk_cache import TrunkCache
from bayeslora.system.files import disk_is_full
from bayeslora.tasks import Item
from bayeslora.training.trainer import NonFiniteLossError

__all__ = ["CellComputer", "Outcome", "cell_folder", "cell_of"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a planned cell.

    Attributes:
        planned: With its learning rate.
        cells: Its cell; before it, what was derived from it. Empty where it failed.
        scores: The most important ones in words.
        seconds: How long it took.
        failure: Type and text of the error, or None.
        traceback: Where the error came from.
    """

    planned: PlannedCell
    cells: Sequence[Cell] = ()
    scores: str = ""
    seconds: float = 0.0
    failure: str | None = None
    traceback: str = ""

    @classmethod
    def failed(cls, planned: PlannedCell, error: BaseException, seconds: float = 0.0) -> Outcome:
        """That of a planned cell which raised `error`."""
        # Where in the program the disk was full tells nobody anything.
        text = "" if disk_is_full(error) else "".join(traceback.format_exception(error))
        return cls(planned=planned, seconds=seconds, failure=f"{type(error).__name__}: {error}", traceback=text)


def cell_folder(output: Path, task: str, title: str, learning_rate: float, seed: int) -> Path:
    """The run folder of a cell."""
    return output / "runs" / f"{task}-{title}-{learning_rate:g}-{seed}".replace("/", "_")


class CellComputer:
    """Computes cells, one after the other; they share what the frozen layers computed.

    Args:
        config: The comparison.
        output: Its folder; runs are kept in `runs/`, so that a cell which was interrupted goes on from a checkpoint.
        items: What is trained on and predicted.
    """

    def __init__(self, config: CompareConfig, output: Path, items: ComparedItems):
        self.config, self.output, self.items = config, output, items
        self._caches: dict[int | None, TrunkCache] = {}

    def attempt(self, planned: PlannedCell) -> Outcome:
        """Compute a planned cell whose learning rate is known; an error becomes part of the outcome."""
        started = time.perf_counter()
        try:
            cells, scores = self._compute(planned)
        # One broken method must not cost the others their hours.
        except Exception as error:
            return Outcome.failed(planned, error, time.perf_counter() - started)
        return Outcome(planned=planned, cells=cells, scores=scores, seconds=time.perf_counter() - started)

    def _compute(self, planned: PlannedCell) -> tuple[list[Cell], str]:
        """The cells of a planned one, its own last, and its scores in words."""
        started = time.perf_counter()
        try:
            trained = self._trained(planned)
        except NonFiniteLossError as error:
            if planned.stage == "final":
                raise
            # A rate that is too high is a result of the selection.
            return [_diverged(planned, error, time.perf_counter() - started)], "diverged"
        final, splits = planned.stage == "final", self.items.splits[planned.task]
        parts = {"dev": splits.dev}
        if final:
            parts |= {"test": splits.test}
            parts |= {f"ood:{name}": items for name, items in self.items.outside(planned.task)}
        predictions = {name: trained.predict(items) for name, items in parts.items()}
        assert planned.learning_rate is not None
        cell = cell_of(trained, predictions, planned.task, planned.title, planned.learning_rate, planned.stage)
        if not final:
            return [cell], _scores(predictions["dev"])
        sampled, deterministic = self._cost(trained, splits.test)
        items = len(splits.test[: self.config.cost_examples])
        cell = replace(cell, predict_seconds=sampled, deterministic_seconds=deterministic, predict_items=items)
        # The row's own cell comes last: where it is there, the derived one is.
        derived = [_tempered(cell, predictions)] if self.config.rows[planned.title].temperature else []
        return [*derived, cell], _scores(predictions["test"])

    def _trained(self, planned: PlannedCell) -> Run:
        """A run, trained or, where its folder is finished already, loaded."""
        rate = planned.learning_rate
        assert rate is not None
        run = self.config.run(planned.task, planned.title, planned.seed, rate)
        folder = cell_folder(self.output, planned.task, planned.title, rate, planned.seed)
        if not run.method.adapts:
            return self._fitted_head(run, folder)
        layers = self.config.adapter.last_layers
        cache, done = self._caches.get(layers), (folder / "metrics.json").is_file()
        if done:
            check_finished(run, folder)
            trained = load_run(folder, device=run.model.device)
            trained.trunk_cache = open_trunk_cache(run, trained.model, cache)
        else:
            trained = train(run, folder, resume=True, evaluate_dev=False, trunk_cache=cache)
        if trained.trunk_cache is not None:
            self._caches[layers] = trained.trunk_cache
        return trained

    def _fitted_head(self, run: RunConfig, folder: Path) -> Run:
        """A head, which has no layers to share; each one reads its items itself, so that its time is its own."""
        if (folder / "metrics.json").is_file():
            check_finished(run, folder)
            return load_run(folder, device=run.model.device)
        return train(run, folder, resume=True, evaluate_dev=False)

    def _cost(self, trained: Run, items: Sequence[Item]) -> tuple[float, float]:
        """Seconds for a few items without the trunk cache, with the method's draws and for one deterministic pass."""
        few, plain = items[: self.config.cost_examples], trained.without_cache()
        sampled, deterministic = plain.predict(few), plain.predict(few, 0)
        return sampled.seconds, deterministic.seconds


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
        extra_parameters=_saved_numbers(trained) - lora_parameters(trained.model),
        details={"spread": float(predictions["dev"].predictive.spread.mean())} if "dev" in predictions else {},
        history=metrics["history"],
        predictions={name: _stored(part) for name, part in predictions.items()},
    )


def _diverged(planned: PlannedCell, error: NonFiniteLossError, seconds: float) -> Cell:
    """A cell without predictions."""
    assert planned.learning_rate is not None
    return Cell(
        task=planned.task,
        method=planned.title,
        seed=planned.seed,
        learning_rate=planned.learning_rate,
        stage=planned.stage,
        num_samples=0,
        train_seconds=seconds,
        predict_seconds=0.0,
        trainable_parameters=0,
        details={"diverged": str(error)},
    )


def _tempered(cell: Cell, predictions: dict[str, Prediction]) -> Cell:
    """The same trained adapter with a temperature fitted on dev."""
    dev = predictions["dev"]
    temperature = fit_temperature(dev.predictive, torch.tensor([item.label for item in dev.items]))
    scaled = {
        name: replace(part, predictive=part.predictive.tempered(temperature.value))
        for name, part in predictions.items()
    }
    return replace(
        cell,
        method=f"{cell.method} + temperature",
        derived_from=cell.method,
        details=cell.details | temperature.record,
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

    adapter = get_peft_model_state_dict(trained.model) if trained.config.method.adapts else {}
    return sum(tensor.numel() for tensor in [*adapter.values(), *trained.state.values()])

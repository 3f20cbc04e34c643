"""How one cell of a comparison is computed: train or load, predict, measure the cost."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bayeslora.experiments.comparison.config import CompareConfig
from bayeslora.experiments.comparison.derived import Lengths, Reading, per_token, tempered, with_score_noise
from bayeslora.experiments.comparison.items import ComparedItems
from bayeslora.experiments.comparison.planned_cells import PlannedCell
from bayeslora.experiments.comparison.records import Cell, Predictions, Stage, control_title
from bayeslora.methods import lora_parameters
from bayeslora.metrics import summary
from bayeslora.prediction.length_power import choose_length_power
from bayeslora.prediction.temperature import Temperature, bound_of
from bayeslora.runs import Prediction, Run
from bayeslora.runs.adaptive import NumSamples
from bayeslora.runs.config import RunConfig
from bayeslora.runs.going_on import train_or_load
from bayeslora.scoring import Cloze, get_scoring
from bayeslora.scoring.options import Options
from bayeslora.scoring.trunk_cache import TrunkCache
from bayeslora.system.files import disk_is_full
from bayeslora.system.log import logger
from bayeslora.tasks import Item
from bayeslora.training.trainer import NonFiniteLossError


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
        self._caches: dict[tuple[bool, int | None], TrunkCache] = {}
        self._said: set[tuple[str, str | None]] = set()

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
        details: dict[str, Any] = {}
        if planned.chooses_length_power:
            predictions, details = self._at_chosen_length_power(trained, planned, predictions)
        assert planned.learning_rate is not None
        cell = cell_of(trained, predictions, planned.task, planned.title, planned.learning_rate, planned.stage)
        cell = replace(cell, details=cell.details | details)
        if not final:
            return [cell], _scores(predictions["dev"])
        sampled, deterministic = self._seconds(trained, splits.test), self._seconds(trained, splits.test, 0)
        items = len(splits.test[: self.config.cost_examples])
        cell = replace(cell, predict_seconds=sampled, deterministic_seconds=deterministic, predict_items=items)
        # The row's own cell comes last: where it is there, the derived ones are.
        derived = [_derived(cell, reading) for reading in self._readings(planned, trained, predictions, deterministic)]
        return [*derived, cell], _scores(predictions["test"])

    def _at_chosen_length_power(
        self, trained: Run, planned: PlannedCell, predictions: Mapping[str, Prediction]
    ) -> tuple[dict[str, Prediction], dict[str, Any]]:
        """The predictions of dev at the length power that the task's rows will have, and how it was chosen."""
        dev, lengths = predictions["dev"], _lengths(trained, predictions)
        powers = self.config.length_powers(planned.task)
        assert lengths is not None
        read = {power: dev.predictive.rescaled(lengths["dev"] ** (1.0 - power)) for power in powers}
        known = {power: predictive for power, predictive in read.items() if predictive is not None}
        chosen = choose_length_power(known, torch.tensor([item.label for item in dev.items]))
        tried = {f"{power:g}": nll for power, nll in chosen.nll.items()}
        details = {"length_power": chosen.power, "length_powers": tried}
        return {"dev": replace(dev, predictive=known[chosen.power])}, details

    def _readings(
        self, planned: PlannedCell, trained: Run, predictions: Mapping[str, Prediction], one_pass_seconds: float
    ) -> Iterator[Reading]:
        """What is derived from a final cell: its controls, the mean per token, and a temperature for each."""
        row, own = self.config.rows[planned.title], Reading(planned.title, predictions, own=True)
        power, lengths = planned.length_power, _lengths(trained, predictions)
        readings = [own]
        if "one_pass" in row.controls:
            means = {name: trained.predict(part.items, 0) for name, part in predictions.items()}
            readings.append(Reading(control_title(planned.title, "one_pass"), means, seconds=one_pass_seconds))
        if "adaptive_draws" in row.controls:
            trained.learn_settling(predictions["dev"])
            settled = {name: trained.predict(part.items, "auto") for name, part in predictions.items()}
            seconds = self._seconds(trained, predictions["test"].items, "auto")
            readings.append(Reading(control_title(planned.title, "adaptive_draws"), settled, seconds=seconds))
        if self.config.protocol.mean_per_token and lengths is not None and power not in (None, 1):
            assert power is not None
            readings += [found for reading in readings for found in per_token(reading, lengths, power)]
        if "score_noise" in row.controls:
            assert lengths is not None
            readings.append(with_score_noise(own, lengths))
        for reading in readings:
            if not reading.own:
                yield reading
            if row.temperature:
                yield tempered(reading, partial(self._say, planned.task, reading.title))

    def _say(self, task: str, title: str, temperature: Temperature) -> None:
        """What is to be said of a row's temperature; of few dev items, which its rows share, once for each task."""
        kind = (task, title if bound_of(temperature.record) else None)
        if temperature.warning and kind not in self._said:
            self._said.add(kind)
            logger.warning("%s, %s: %s", task, title, temperature.warning)

    def _trained(self, planned: PlannedCell) -> Run:
        """A run, trained or, where its folder is finished already, loaded."""
        rate = planned.learning_rate
        assert rate is not None
        run = self.config.run(planned.task, planned.title, planned.seed, rate, planned.length_power)
        # The base model is read in another way before the length power is chosen.
        title = f"{planned.title}, unread" if planned.chooses_length_power else planned.title
        folder = cell_folder(self.output, planned.task, title, rate, planned.seed)
        # Adapters below a head have another trunk.
        layers = (get_scoring(run.task.scoring).by_heads, self.config.adapter.last_layers)
        trained = train_or_load(run, folder, self._caches.get(layers))
        if trained.trunk_cache is not None:
            self._caches[layers] = trained.trunk_cache
        return trained

    def _seconds(self, trained: Run, items: Sequence[Item], num_samples: NumSamples = None) -> float:
        """Of a prediction of a few items without the trunk cache."""
        return trained.without_cache().predict(items[: self.config.cost_examples], num_samples).seconds


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
        num_samples=int(next(iter(predictions.values())).num_samples),
        train_seconds=metrics["train_seconds"],
        predict_seconds=sum(part.seconds for part in predictions.values()),
        peak_memory_bytes=metrics.get("peak_memory_bytes"),
        trainable_parameters=metrics["trainable_parameters"] if _trains(trained.config) else 0,
        extra_parameters=_saved_numbers(trained) - lora_parameters(trained.model),
        details=_found(metrics, predictions),
        history=metrics["history"],
        predictions={name: _stored(part) for name, part in predictions.items()},
    )


def _trains(config: RunConfig) -> bool:
    """Whether a run takes any step."""
    return bool(config.train.epochs or config.train.max_steps)


def _found(metrics: Mapping[str, Any], predictions: Mapping[str, Prediction]) -> dict[str, Any]:
    """How far the draws differ on dev, and which epoch was chosen."""
    spread = {"spread": float(predictions["dev"].predictive.spread.mean())} if "dev" in predictions else {}
    return spread | {name: metrics[name] for name in ("epoch", "epochs") if name in metrics}


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


def _derived(cell: Cell, reading: Reading) -> Cell:
    """The cell of another reading of the same trained adapter."""
    draws = float(reading.predictions["test"].num_samples)
    return replace(
        cell,
        method=reading.title,
        derived_from=cell.method,
        num_samples=int(draws) if draws.is_integer() else round(draws, 4),
        predict_seconds=cell.predict_seconds if reading.seconds is None else reading.seconds,
        details={**cell.details, **reading.details},
        predictions={name: _stored(part) for name, part in reading.predictions.items()},
    )


def _lengths(trained: Run, predictions: Mapping[str, Prediction]) -> Lengths | None:
    """Tokens of each choice of what was predicted; None where the scoring does not add them up."""
    if not isinstance(trained.scoring, Cloze) or isinstance(trained.scoring, Options):
        return None
    return {name: trained.scoring.lengths(part.items) for name, part in predictions.items()}


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

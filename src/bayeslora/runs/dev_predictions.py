"""The predictions of the dev split that a run keeps, and the prediction sets that are calibrated on them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bayeslora.prediction.conformal import ConformalSets, check_coverage
from bayeslora.runs.adaptive import NumSamples, draws_in_words
from bayeslora.runs.config import RunConfig
from bayeslora.runs.config_files import read_config
from bayeslora.runs.items import task_items
from bayeslora.runs.kept import Key, kept_or_computed, run_key, write_kept
from bayeslora.runs.prediction import Prediction
from bayeslora.runs.run import Run
from bayeslora.scoring.base import choice_mask
from bayeslora.tasks import Item

_NAME = "dev_predictions.json"


def calibrated_on_dev(run: Run, coverage: float, num_samples: NumSamples = None) -> ConformalSets:
    """Prediction sets calibrated on the dev split of the run's task.

    Raises:
        ValueError: `coverage` is not in (0, 1), or the task has no dev items.
    """
    check_coverage(coverage)
    dev = task_items(run.config.task).dev
    if not dev:
        raise ValueError(
            f"coverage needs dev items to calibrate on, but the run's task {run.config.task.name!r} has none; leave "
            "coverage out, or train on a task with a dev split."
        )
    labels = torch.tensor([item.label for item in dev])
    return ConformalSets.calibrate(
        dev_probabilities(run, dev, num_samples), labels, coverage, choice_mask=choice_mask(dev)
    )


def dev_probabilities(run: Run, dev: Sequence[Item], num_samples: NumSamples = None) -> Tensor:
    """Probabilities `[items, choices]` of the dev items, 0 where an item has no such choice.

    They are those that the run keeps, if they are of its adapter, config, temperature and so many draws; else they are
    predicted, and kept in their place.
    """
    key = _key(run.config, dev, num_samples, run.temperature)
    rows = kept_or_computed(run.folder, _NAME, key, lambda: _rows(run.predict(dev, num_samples)))
    width = max(map(len, rows))
    return torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rows])


def keep_dev_predictions(folder: Path, prediction: Prediction, temperature: float) -> None:
    """Write the predictions of dev to a run folder that holds its adapter and config."""
    config = read_config(folder / "config.yaml")
    key = _key(config, prediction.items, None, temperature)
    write_kept(folder, _NAME, key(folder), _rows(prediction))


def _key(config: RunConfig, dev: Sequence[Item], num_samples: NumSamples, temperature: float) -> Key:
    samples = draws_in_words(config, num_samples)
    return partial(run_key, config=config, items=dev, num_samples=samples, temperature=temperature)


def _rows(prediction: Prediction) -> list[list[float]]:
    return [row["probabilities"] for row in prediction.rows()]

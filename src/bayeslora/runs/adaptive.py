"""How a run decides that an item has draws enough: from the draws of its dev items, which it keeps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from bayeslora.options.ranges import Draws
from bayeslora.prediction.sequential import Adaptive, Settling
from bayeslora.runs.config import RunConfig
from bayeslora.runs.config_files import read_config
from bayeslora.runs.items import task_items
from bayeslora.runs.kept import Key, kept_or_computed, run_key, write_kept
from bayeslora.runs.prediction import Prediction
from bayeslora.system.log import logger
from bayeslora.tasks import Item

if TYPE_CHECKING:
    from typing_extensions import TypeIs


NumSamples = Draws | Literal["auto"] | Adaptive | None
"""Draws of a prediction: so many, as many as each item needs ("auto" is `Adaptive()`), or the run's own number."""

NOT_FOR_TEXTS = 'num_samples "auto" is for items with choices, but this run writes texts; give a number.'

_NAME = "dev_draws.json"
_DEV_ITEMS = 500
"""Of which two variances and one limit are estimated."""


def is_adaptive(num_samples: NumSamples) -> TypeIs[Literal["auto"] | Adaptive]:
    """Whether each item gets as many draws as it needs."""
    return num_samples == "auto" or isinstance(num_samples, Adaptive)


def can_stop(config: RunConfig) -> bool:
    """Whether predictions are made of draws that could be fewer."""
    return config.method.draws_in_turn and config.most_samples > 1


def draws_in_words(config: RunConfig, num_samples: NumSamples) -> int | str:
    """What predictions asked for `num_samples` are made of, for the keys of files that hold them."""
    asked = config.num_samples if num_samples is None else num_samples
    return repr(asked) if is_adaptive(asked) else config.samples_used(asked)


def check_adaptive(config: RunConfig, dev_items: int) -> None:
    """Whether predictions of a run can have as many draws as each item needs, or else predict as ever.

    Raises:
        ValueError: The run writes texts, or its draws could be fewer, but depend on what is in a batch, or there are
            fewer than two dev items.
    """
    if config.task.scoring == "text":
        raise ValueError(NOT_FOR_TEXTS)
    if not can_stop(config):
        return
    if config.method.draws_depend_on_batch:
        raise ValueError(
            f'num_samples "auto" adds draws to the items that need more, but the draws of {config.method.name} depend '
            "on what else is in the batch; give a number."
        )
    if dev_items < 2:
        raise ValueError(
            f'num_samples "auto" learns from dev items how much draws differ, but the run\'s task '
            f"{config.task.name!r} has {dev_items}; give a number, or train on a task with a dev split."
        )


def settling_of(
    config: RunConfig,
    num_samples: Literal["auto"] | Adaptive,
    folder: Path | None,
    temperature: float,
    predict: Callable[[Sequence[Item]], Prediction],
    known: dict[tuple[Adaptive, int, float], Settling],
) -> Settling | None:
    """When an item has draws enough; None where the method's predictions are made of no draws that could be fewer.

    Args:
        config: The run's; its number of draws is the reference.
        num_samples: What is asked for.
        folder: Where the run keeps the draws of dev items.
        temperature: The run's.
        predict: Predicts the dev items with all draws; called where the folder has no draws of this run.
        known: Those that were found before in this process; what is found here is added.

    Raises:
        ValueError: As `check_adaptive`.
    """
    if not can_stop(config):
        return None
    adaptive = Adaptive() if num_samples == "auto" else num_samples
    asked = (adaptive, config.most_samples, temperature)
    if asked not in known:
        dev = task_items(config.task).dev[:_DEV_ITEMS]
        check_adaptive(config, len(dev))
        rows = kept_or_computed(folder, _NAME, _key(config, dev, temperature), lambda: _draws(predict(dev)))
        known[asked] = _settling(adaptive, rows)
    return known[asked]


def learn_settling(
    config: RunConfig, dev: Prediction, temperature: float, known: dict[tuple[Adaptive, int, float], Settling]
) -> None:
    """Add to `known` what the run's dev items, predicted with all draws, say of "auto"; see `check_adaptive`."""
    check_adaptive(config, len(dev.items))
    known[Adaptive(), config.most_samples, temperature] = _settling(Adaptive(), _draws(dev.first(_DEV_ITEMS)))


def keep_dev_draws(folder: Path, dev: Prediction, temperature: float) -> None:
    """Write the draws of dev items, predicted with all of them, to a run folder that holds its adapter and config."""
    config, first = read_config(folder / "config.yaml"), dev.first(_DEV_ITEMS)
    write_kept(folder, _NAME, _key(config, first.items, temperature)(folder), _draws(first))


def _settling(adaptive: Adaptive, rows: Sequence[Any]) -> Settling:
    """What dev items with these draws say, with a word where they are few for a share of errors."""
    if len(rows) < 1 / adaptive.error:
        logger.warning(
            'num_samples "auto" learns from %s dev items, too few to show that at most %g of the answers change: more '
            "may; give a number, or a task with %s dev items or more",
            *(len(rows), adaptive.error, math.ceil(1 / adaptive.error)),
        )
    found = [torch.tensor(row) for row in rows]
    samples = nn.utils.rnn.pad_sequence(found, batch_first=True, padding_value=-torch.inf).permute(2, 0, 1)
    return Settling.fit(adaptive, samples)


def _key(config: RunConfig, dev: Sequence[Item], temperature: float) -> Key:
    return partial(run_key, config=config, items=dev, num_samples=config.most_samples, temperature=temperature)


def _draws(dev: Prediction) -> list[list[list[float]]]:
    """[items, choices, draws], of each item's own choices: JSON has no infinity."""
    samples = dev.predictive.samples
    return [samples[:, index, : len(item.choices)].T.tolist() for index, item in enumerate(dev.items)]

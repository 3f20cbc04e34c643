"""How a run decides that an item has draws enough: from the draws of its dev items, which it keeps."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from bayeslora.prediction.sequential import Adaptive, Settling
from bayeslora.runs.config import RunConfig
from bayeslora.runs.items import task_items
from bayeslora.runs.kept import kept_or_computed, run_key
from bayeslora.runs.prediction import Prediction
from bayeslora.tasks import Item

if TYPE_CHECKING:
    from typing_extensions import TypeIs

logger = logging.getLogger("bayeslora")

__all__ = ["NumSamples", "can_stop", "draws_in_words", "is_adaptive", "settling_of"]

NumSamples = int | Literal["auto"] | Adaptive | None
"""Draws of a prediction: so many, as many as each item needs ("auto" is `Adaptive()`), or the run's own number."""

_NAME = "dev_draws.json"
_DEV_ITEMS = 500
"""Of which two variances and one limit are estimated."""


def is_adaptive(num_samples: NumSamples) -> TypeIs[Literal["auto"] | Adaptive]:
    """Whether each item gets as many draws as it needs."""
    return num_samples == "auto" or isinstance(num_samples, Adaptive)


def can_stop(config: RunConfig) -> bool:
    """Whether predictions are made of draws that could be fewer."""
    return config.method.draws_in_turn and config.num_samples > 1


def draws_in_words(config: RunConfig, num_samples: NumSamples) -> int | str:
    """What predictions asked for `num_samples` are made of, for the keys of files that hold them."""
    if is_adaptive(num_samples):
        return repr(num_samples)
    return config.method.effective_num_samples(config.num_samples if num_samples is None else num_samples)


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
        ValueError: The method's draws depend on what is in a batch, or the task has fewer than two dev items.
    """
    if not can_stop(config):
        return None
    method, most = config.method, config.num_samples
    if method.draws_depend_on_batch:
        raise ValueError(
            f'num_samples "auto" adds draws to the items that need more, but the draws of {method.name} depend on '
            "what else is in the batch; give a number."
        )
    adaptive = Adaptive() if num_samples == "auto" else num_samples
    asked = (adaptive, most, temperature)
    if asked not in known:
        known[asked] = Settling.fit(adaptive, _dev_draws(config, folder, temperature, predict, adaptive.error))
    return known[asked]


def _dev_draws(
    config: RunConfig,
    folder: Path | None,
    temperature: float,
    predict: Callable[[Sequence[Item]], Prediction],
    error: float,
) -> Tensor:
    """Those that the run keeps, or else predicted; with a word where they are few for a share of errors."""
    dev = task_items(config.task).dev[:_DEV_ITEMS]
    if len(dev) < 2:
        raise ValueError(
            f'num_samples "auto" learns from dev items how much draws differ, but the run\'s task '
            f"{config.task.name!r} has {len(dev)}; give a number, or train on a task with a dev split."
        )
    if len(dev) < 1 / error:
        logger.warning(
            'num_samples "auto" learns from %s dev items, too few to show that at most %g of the answers change: more '
            "may; give a number, or a task with %s dev items or more",
            *(len(dev), error, math.ceil(1 / error)),
        )

    def key(folder: Path) -> dict[str, Any]:
        return run_key(folder, config, dev, config.num_samples, temperature=temperature)

    def draws() -> list[list[list[float]]]:
        """[items, choices, draws], of each item's own choices: JSON has no infinity."""
        samples = predict(dev).predictive.samples
        return [samples[:, index, : len(item.choices)].T.tolist() for index, item in enumerate(dev)]

    rows = [torch.tensor(row) for row in kept_or_computed(folder, _NAME, key, draws)]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-torch.inf).permute(2, 0, 1)

"""Cloze runs whose link, the power of a choice's length, is chosen on their own items."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from bayeslora.methods import State
from bayeslora.prediction.length_power import LENGTH_POWERS, LengthPower, choose_length_power
from bayeslora.prediction.predictive import Predictive
from bayeslora.runs.config import RunConfig
from bayeslora.runs.prediction import in_chunks, original_order, predict_chunks
from bayeslora.scoring import Cloze
from bayeslora.scoring.trunk_cache import TrunkCache
from bayeslora.system.log import logger
from bayeslora.tasks import Item, Splits


def predict_powers(
    config: RunConfig,
    model: nn.Module,
    scoring: Cloze,
    items: Sequence[Item],
    powers: Sequence[float] = LENGTH_POWERS,
    *,
    trunk_cache: TrunkCache | None = None,
    num_samples: int = 0,
    state: State | None = None,
    progress: bool = False,
) -> dict[float, Predictive]:
    """Predictions of `items` at each power of the length, in one pass and at T = 1.

    Args:
        config: The run's.
        model: With its adapters.
        scoring: Reads the items; it stays as it is.
        items: Any number of them.
        powers: To predict at.
        trunk_cache: Serves the frozen layers' output.
        num_samples: Draws; 0 predicts with the posterior mean.
        state: What the method's `fit_posterior` returned.
        progress: Whether to show a progress line.
    """
    several = copy.copy(scoring)
    several.length_power = tuple(powers)
    chunks = in_chunks(items, config.batch_size)
    samples = config.method.effective_num_samples(num_samples)
    joined, _ = predict_chunks(
        config, model, several, items, chunks, trunk_cache, samples, state, config.seed, progress
    )
    # A chunk has its items at the first power, then at the next one.
    before = [sum(map(len, chunks[:number])) for number in range(len(chunks))]
    back = original_order(chunks)
    found = {}
    for number, power in enumerate(powers):
        places = [
            torch.arange(len(chunk)) + first * len(powers) + number * len(chunk)
            for first, chunk in zip(before, chunks, strict=True)
        ]
        found[power] = joined.take(torch.cat(places)[back])
    return found


def choose_link(
    config: RunConfig, model: nn.Module, scoring: Cloze, items: Sequence[Item], trunk_cache: TrunkCache | None = None
) -> LengthPower:
    """The power of the lowest NLL of `items`, each at its best temperature; without draws.

    Args:
        config: The run's.
        model: One that was not trained on the items.
        scoring: Reads them.
        items: With labels.
        trunk_cache: Serves the frozen layers' output.
    """
    labels = torch.tensor([item.label for item in items])
    return choose_length_power(predict_powers(config, model, scoring, items, trunk_cache=trunk_cache), labels)


def with_length_power(
    config: RunConfig, model: nn.Module, scoring: Cloze, splits: Splits, trunk_cache: TrunkCache | None
) -> RunConfig:
    """`config` with the power written down where it says "auto", and `scoring` reading at it.

    It is chosen before the training, by the model as it is then, on the dev items or, without any, on the training
    items, whose labels that model has not seen; training and predictions then have the same one.
    """
    if config.task.length_power != "auto":
        return config
    part = "dev" if splits.dev else "train"
    chosen = choose_link(config, model, scoring, getattr(splits, part), trunk_cache)
    scoring.length_power = chosen.power
    tried = ", ".join(f"{power:g}: {nll:.3f}" for power, nll in chosen.nll.items())
    logger.info(
        "length_power: %g, by the NLL (nats, each at its best temperature) of the %s items before the training: %s",
        chosen.power,
        part,
        tried,
    )
    return replace(config, task=replace(config.task, length_power=chosen.power))

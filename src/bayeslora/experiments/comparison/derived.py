"""What else one trained adapter says: the further rows of a row, which cost no training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from bayeslora.experiments.comparison.records import TEMPERED, control_title
from bayeslora.prediction.predictive import Predictive
from bayeslora.prediction.temperature import Temperature, best_temperature, fit_temperature
from bayeslora.runs.prediction import Prediction

MEAN_PER_TOKEN = "mean per token"
"""In a cell's details["reading"] and its title, where scores were read by the papers' link and not the chosen one."""

NOISE_SCALES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Values of a to choose from, nats of a choice's summed log-likelihood per token of the mean."""

Lengths: TypeAlias = Mapping[str, Tensor]
"""For each split the tokens of each choice [items, choices]."""

_NOISE_DRAWS = 256
_NOISE_SEED = 0


@dataclass(frozen=True)
class Reading:
    """One way to predict with a trained adapter.

    Args:
        title: Of its row.
        predictions: For each split.
        details: What was chosen for it.
        own: Whether it is the row's own one, from which the others are derived.
        seconds: What its prediction of the items of which the cost is measured takes; None: as long as the row's own.
    """

    title: str
    predictions: Mapping[str, Prediction]
    details: Mapping[str, Any] = field(default_factory=dict)
    own: bool = False
    seconds: float | None = None

    @property
    def labels(self) -> Tensor:
        """Of the dev items."""
        return torch.tensor([item.label for item in self.predictions["dev"].items])

    def changed(self, title: str, change: Callable[[str, Predictive], Predictive], **details: Any) -> Reading:
        """Another one, with each split's predictive changed."""
        predictions = {
            split: replace(part, predictive=change(split, part.predictive)) for split, part in self.predictions.items()
        }
        return replace(self, title=title, predictions=predictions, details={**self.details, **details}, own=False)


def tempered(reading: Reading, say: Callable[[Temperature], None]) -> Reading:
    """With a temperature fitted on dev, of which `say` may say what is to be said."""
    found = fit_temperature(reading.predictions["dev"].predictive, reading.labels, warns=False)
    say(found)
    title = f"{reading.title}{TEMPERED}"
    return reading.changed(title, lambda _, predictive: predictive.tempered(found.value), **found.record)


def per_token(reading: Reading, lengths: Lengths, length_power: float) -> Iterator[Reading]:
    """The same scores by the mean per token; none where the method does not say what its scores are."""
    factors = {split: lengths[split] ** (length_power - 1.0) for split in reading.predictions}
    found = {split: part.predictive.rescaled(factors[split]) for split, part in reading.predictions.items()}
    known = {split: predictive for split, predictive in found.items() if predictive is not None}
    if len(known) == len(found):
        title = f"{reading.title}, {MEAN_PER_TOKEN}"
        yield reading.changed(title, lambda split, _: known[split], reading=MEAN_PER_TOKEN)


def with_score_noise(reading: Reading, lengths: Lengths) -> Reading:
    """With Gaussian noise of standard deviation a / length on the score of each choice, averaged over.

    a has the lowest NLL on dev, each with its best temperature, among `NOISE_SCALES`.
    """
    dev, labels = reading.predictions["dev"].predictive, reading.labels

    def loss(scale: float) -> float:
        return best_temperature(_noisy(dev, scale / lengths["dev"]), labels)[1]

    scale = min(NOISE_SCALES, key=loss)
    title = control_title(reading.title, "score_noise")
    return reading.changed(title, lambda split, p: _noisy(p, scale / lengths[split]), score_noise=scale)


def _noisy(predictive: Predictive, std: Tensor) -> Predictive:
    """The mean over noise of this standard deviation [items, choices] on the scores of the mean prediction."""
    source = torch.Generator().manual_seed(_NOISE_SEED)
    draws = torch.randn(_NOISE_DRAWS, *std.shape, generator=source)
    return Predictive(torch.log_softmax(predictive.log_probabilities + std * draws, -1))

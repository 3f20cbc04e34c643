"""The link of cloze scoring, chosen on held-out items: which power of its length a choice's log-likelihood is over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from bayeslora.prediction.predictive import Predictive

LENGTH_POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""From the sum of a choice's token log-likelihoods (0) to their mean (1)."""


@dataclass(frozen=True)
class LengthPower:
    """A chosen power.

    Args:
        power: k of sum / length^k.
        temperature: T, which goes with it: it divides the log-probabilities.
        nll: Of each power that was tried at its own best T, nats per item.
    """

    power: float
    temperature: float
    nll: Mapping[float, float]


def choose_length_power(predictives: Mapping[float, Predictive], labels: Tensor) -> LengthPower:
    """The power of the lowest NLL, each at its best temperature: powers scale the logits differently.

    Args:
        predictives: By power, of items whose labels the predicting model has not seen.
        labels: Right choices [items].

    Raises:
        ValueError: There is no item, or no power.
    """
    from bayeslora.prediction.temperature import best_temperature

    if not predictives:
        raise ValueError("there is no power to choose from; expected predictions at one or more.")
    found = {power: best_temperature(predictive, labels) for power, predictive in predictives.items()}
    nll = {power: loss for power, (_, loss) in found.items()}
    best = min(nll, key=nll.__getitem__)
    return LengthPower(best, found[best][0], nll)

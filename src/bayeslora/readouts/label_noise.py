"""Wrong labels: a share epsilon of them is drawn uniformly, and items that look wrong count less.

    p(y) = (1 - epsilon) p_T(y) + epsilon / C

with the leave-one-out predictions p_T at temperature T. Epsilon and T have the largest posterior under the priors
Beta(1, 10) and log T ~ N(0, 1). The probability that an item's label is right, r = (1 - epsilon) p_T(y) / p(y), then
divides its noise variance (EM); what is predicted is p_T, of right labels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bayeslora.prediction.predictive import Predictive

_GRID = tuple(float(point) for point in np.linspace(math.log(0.05), math.log(20.0), 51))
_FINE = (_GRID[1] - _GRID[0]) / 5
_SHARES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
_FACTORS = (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)
_MOST = 4000
_WORTH = 10.0
"""Nats by which wrong labels must explain the labels better: a model that is merely too sharp in its errors gains a
few (studies/methods/readout has 4 on clean labels)."""
_DENSITY = 10.0
"""Second parameter of the Beta prior."""


@dataclass(frozen=True)
class LabelNoise:
    """What leave-one-out predictions say of their labels.

    Args:
        temperature: T, which divides log-probabilities.
        share: Epsilon, how many labels are drawn at random.
        right: Probability of each item that its label is not [items].
        nll: Mean negative log-probability of the labels as they are, nats.
    """

    temperature: float
    share: float
    right: Tensor
    nll: float


def fit_temperature_and_noise(
    predictive: Predictive,
    labels: Tensor,
    choices: Tensor,
    weights: Tensor | None = None,
    *,
    noisy: bool | float = True,
) -> LabelNoise:
    """T and epsilon of the largest posterior given leave-one-out predictions of the training items.

    Args:
        predictive: Of the training items, each without itself.
        labels: [items].
        choices: How many each item has [items].
        weights: How much each label counts [items]; default: 1.
        noisy: Whether labels may be wrong; without, epsilon is 0. A number is epsilon.
    """
    # Thousands of items say all there is to say of two numbers.
    some = torch.arange(min(_MOST, len(labels))) * len(labels) // min(_MOST, len(labels))
    shown, behind = choices[some], _behind(predictive, labels, some)
    counting = torch.ones(len(some)) if weights is None else weights[some]
    known: dict[float, Tensor] = {}

    def loss(log_temperature: float, share: float) -> float:
        if log_temperature not in known:
            known[log_temperature] = _label_probability(behind, math.exp(log_temperature))
        mixed = (1 - share) * known[log_temperature] + share / shown
        prior = log_temperature**2 / 2 - (_DENSITY - 1) * math.log1p(-share)
        return float(prior - (counting * mixed.clamp_min(1e-300).log()).sum())

    best, share = _minimum(loss, (0.0 if isinstance(noisy, bool) else noisy,))
    if noisy is True:
        other = _minimum(loss, _SHARES)
        best, share = other if loss(*other) < loss(best, share) - _WORTH else (best, share)
    temperature = math.exp(best)
    parts = torch.arange(len(labels)).split(_MOST)
    right = torch.cat([_label_probability(_behind(predictive, labels, part), temperature) for part in parts])
    mixed = ((1 - share) * right + share / choices).clamp_min(1e-300)
    return LabelNoise(temperature, share, (1 - share) * right / mixed, float(-mixed.log().mean()))


def _minimum(loss: Callable[[float, float], float], shares: Sequence[float]) -> tuple[float, float]:
    """The log temperature and the share of the smallest loss: on a grid, and on a finer one around its best point."""
    best = min(itertools.product(_GRID, shares), key=lambda at: loss(*at))
    fine = [best[0] + step * _FINE for step in range(-4, 5)]
    around = [best[1] * factor for factor in _FACTORS] if len(shares) > 1 else shares
    return min(itertools.product(fine, around), key=lambda at: loss(*at))


def _behind(predictive: Predictive, labels: Tensor, items: Tensor) -> Tensor:
    """How much more log-probability than the label each choice has in each draw [draws, items, choices]."""
    samples = predictive.samples[:, items]
    return samples - samples.gather(-1, labels[items].expand(len(samples), -1).unsqueeze(-1))


def _label_probability(behind: Tensor, temperature: float) -> Tensor:
    """Mean probability of the labels over the draws [items], float64."""
    return (1 / (behind / temperature).exp().sum(-1)).double().mean(0)

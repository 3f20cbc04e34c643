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
from dataclasses import dataclass, replace

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
        right: Probability of each label that it is not [labels].
        nll: Mean negative log-probability of the labels as they are, each as often as it counts, nats.
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
    items: Tensor | None = None,
    noisy: bool | float = True,
) -> LabelNoise:
    """T and epsilon of the largest posterior given leave-one-out predictions of the training items.

    Args:
        predictive: Of the training items, each without itself.
        labels: [labels].
        choices: How many the item of each label has [labels].
        weights: How much each label counts [labels]; default: 1.
        items: Which item each label is of [labels]; default: each item has one, in their order.
        noisy: Whether labels may be wrong; without, epsilon is 0. A number is epsilon.
    """
    # Thousands of items say all there is to say of two numbers.
    some = torch.arange(min(_MOST, len(labels))) * len(labels) // min(_MOST, len(labels))
    of = torch.arange(len(labels)) if items is None else items
    counting = torch.ones(len(labels), dtype=torch.float64) if weights is None else weights
    shown, behind = choices[some], _behind(predictive, labels[some], of[some])
    known: dict[float, Tensor] = {}

    def loss(log_temperature: float, share: float) -> float:
        if log_temperature not in known:
            known[log_temperature] = _label_probability(behind, math.exp(log_temperature))
        mixed = (1 - share) * known[log_temperature] + share / shown
        prior = log_temperature**2 / 2 - (_DENSITY - 1) * math.log1p(-share)
        return float(prior - (counting[some] * mixed.clamp_min(1e-300).log()).sum())

    best, share = _minimum(loss, (0.0 if isinstance(noisy, bool) else noisy,))
    if noisy is True:
        other = _minimum(loss, _SHARES)
        best, share = other if loss(*other) < loss(best, share) - _WORTH else (best, share)
    temperature = math.exp(best)
    parts = torch.arange(len(labels)).split(_MOST)
    right = torch.cat([_label_probability(_behind(predictive, labels[part], of[part]), temperature) for part in parts])
    mixed = ((1 - share) * right + share / choices).clamp_min(1e-300)
    nll = -float((counting * mixed.log()).sum() / counting.sum())
    return LabelNoise(temperature, share, (1 - share) * right / mixed, nll)


def fit_to_distributions(
    predictive: Predictive, targets: Tensor, choices: Tensor, weights: Tensor, *, noisy: bool | float = True
) -> LabelNoise:
    """As `fit_temperature_and_noise`, of labels that are distributions: each choice counts by its probability.

    Args:
        predictive: As there.
        targets: Probabilities of the choices [items, choices].
        choices: How many each item has [items].
        weights: How much each item counts [items].
        noisy: As there.

    Returns:
        With `right` of each item [items].
    """
    items, labels = targets.nonzero(as_tuple=True)
    shares = targets[items, labels].double()
    found = fit_temperature_and_noise(
        predictive, labels, choices[items], weights[items] * shares, items=items, noisy=noisy
    )
    right = torch.zeros(len(targets), dtype=torch.float64).index_add(0, items, shares * found.right)
    return replace(found, right=right)


def _minimum(loss: Callable[[float, float], float], shares: Sequence[float]) -> tuple[float, float]:
    """The log temperature and the share of the smallest loss: on a grid, and on a finer one around its best point."""
    best = min(itertools.product(_GRID, shares), key=lambda at: loss(*at))
    fine = [best[0] + step * _FINE for step in range(-4, 5)]
    around = [best[1] * factor for factor in _FACTORS] if len(shares) > 1 else shares
    return min(itertools.product(fine, around), key=lambda at: loss(*at))


def _behind(predictive: Predictive, labels: Tensor, items: Tensor) -> Tensor:
    """How much more log-probability than a label each choice of its item has in each draw [draws, labels, choices]."""
    samples = predictive.samples[:, items]
    return samples - samples.gather(-1, labels.expand(len(samples), -1).unsqueeze(-1))


def _label_probability(behind: Tensor, temperature: float) -> Tensor:
    """Mean probability of the labels over the draws [items], float64."""
    return (1 / (behind / temperature).exp().sum(-1)).double().mean(0)

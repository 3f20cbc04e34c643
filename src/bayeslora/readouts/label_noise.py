"""Wrong labels: a share epsilon of them is drawn uniformly, and items that look wrong count less.

    p(y) = (1 - epsilon) p_T(y) + epsilon / C

with the leave-one-out predictions p_T at temperature T. Epsilon and T have the largest posterior under the priors
Beta(1, 10) and log T ~ N(0, 1). The probability that an item's label is right, r = (1 - epsilon) p_T(y) / p(y), then
divides its noise variance (EM); what is predicted is p_T, of right labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from bayeslora.prediction.predictive import Predictive

__all__ = ["LabelNoise", "fit_temperature_and_noise"]

_GRID = np.linspace(math.log(0.05), math.log(20.0), 25)
_SHARES = (0.0, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5)
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
    predictive: Predictive, labels: Tensor, choices: Tensor, *, noisy: bool = True
) -> LabelNoise:
    """T and epsilon of the largest posterior given leave-one-out predictions of the training items.

    Args:
        predictive: Of the training items, each without itself.
        labels: [items].
        choices: How many each item has [items].
        noisy: Whether labels may be wrong; without, epsilon is 0.
    """
    index = labels.expand(predictive.samples.shape[0], -1).unsqueeze(-1)

    def chosen(log_temperature: float) -> Tensor:
        scaled = torch.log_softmax(predictive.samples.double() / math.exp(log_temperature), -1)
        return scaled.gather(-1, index).squeeze(-1).exp().mean(0)

    def loss(log_temperature: float, share: float, right: Tensor) -> float:
        mixed = (1 - share) * right + share / choices
        prior = log_temperature**2 / 2 - (_DENSITY - 1) * math.log1p(-share)
        return float(prior - mixed.clamp_min(1e-300).log().sum())

    shares = _SHARES if noisy else (0.0,)
    tables = {point: chosen(point) for point in _GRID}
    starts = ((point, share) for point in _GRID for share in shares)
    start = min(starts, key=lambda at: loss(at[0], at[1], tables[at[0]]))
    bounds = [(_GRID[0], _GRID[-1]), (0.0, 0.9 if noisy else 0.0)]
    found = minimize(lambda at: loss(at[0], at[1], chosen(at[0])), start, bounds=bounds, method="Powell")
    best = tuple(found.x) if found.fun < loss(start[0], start[1], tables[start[0]]) else start
    right, share = chosen(best[0]), float(best[1])
    mixed = ((1 - share) * right + share / choices).clamp_min(1e-300)
    return LabelNoise(math.exp(best[0]), share, (1 - share) * right / mixed, float(-mixed.log().mean()))

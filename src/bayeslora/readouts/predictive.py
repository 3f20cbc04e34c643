"""From Gaussian utilities to class probabilities: a softmax averaged over fixed points of the Gaussian.

A label in one-hot code around utilities f with Gaussian noise of variance sigma^2 has p(k | f) proportional to
exp(-|e_k - f|^2 / 2 sigma^2), which is softmax(f / sigma^2). An item has few utilities, so their posterior is
integrated over points that are the same for every item: without a seed, and an item's numbers do not depend on the
others'.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from scipy.special import ndtri
from scipy.stats.qmc import Sobol
from torch import Tensor

from bayeslora.prediction.predictive import Predictive
from bayeslora.readouts.contrasts import Contrasts, helmert
from bayeslora.readouts.regression import Utilities

POINTS = 512


@lru_cache(maxsize=32)
def standard_points(dimensions: int, points: int = POINTS) -> Tensor:
    """Equally weighted points [points, dimensions] of a standard normal distribution, float64; their mean is zero.

    One dimension: the middles (by probability) of equal shares. More: a Sobol net and its mirror image. Both are scaled
    to unit variance in each dimension.
    """
    if dimensions == 0:
        return torch.zeros(1, 0, dtype=torch.float64)
    if dimensions == 1:
        uniform = ((np.arange(points) + 0.5) / points)[:, None]
    else:
        # The net begins in the corner; half a cell moves it inside.
        half = Sobol(dimensions, scramble=False).random(points // 2) + 0.5 / points
        uniform = np.concatenate([half, 1 - half])
    normal = ndtri(uniform)
    return torch.from_numpy(normal / normal.std(0))


def softmax_predictive(
    utilities: Utilities, contrasts: Contrasts, temperature: float, points: int = POINTS
) -> Predictive:
    """E[softmax(f / temperature)] for each item, as a `Predictive` whose draws are the fixed points.

    Args:
        utilities: Of the items' contrasts, one output.
        contrasts: Which choices the items have.
        temperature: What utilities are divided by: sigma^2, or sigma^2 T.
        points: Of the integral.

    Returns:
        Log-probabilities [points, items, choices]; -inf for choices that an item does not have. Entropy and mutual
        information (nats) follow.
    """
    counts = contrasts.mask.sum(-1)
    found = torch.full((points, *contrasts.mask.shape), -math.inf)
    # Each number of choices by itself: the points of another have other dimensions.
    for count in counts.unique().tolist():
        own = (counts == count).nonzero()[:, 0]
        mean, covariance = utilities.mean[own, : count - 1, 0], utilities.covariance[own, : count - 1, : count - 1]
        draws = mean + torch.einsum("pd,ied->pie", standard_points(count - 1, points), _root(covariance))
        scores = draws @ helmert(count) / temperature
        found[:, own, :count] = torch.log_softmax(scores, -1).float()
    return Predictive(found)


def _root(covariance: Tensor) -> Tensor:
    """A square root of each covariance [items, size, size]; rounding's negative eigenvalues count as zero."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp_min(0).sqrt().unsqueeze(-2)

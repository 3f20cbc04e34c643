"""Scales of a Gaussian process regression by its evidence, in closed form (MacKay 1992; GPML 5.4.1).

Targets y = f + e with f ~ N(0, sum_b w_b K_b) and e ~ N(0, sigma^2 / r) for each of several outputs, which share the
kernel. With K = sum_b w_b K_b + sigma^2 diag(1/r), P = K^-1 and a = P y, the log evidence and its slopes are

    log p(y) = -y'a / 2 - log|K| / 2 - n log(2 pi) / 2,
    d log p / d log w_b = w_b (a' K_b a - tr(P K_b)) / 2,

and tr(P w_b K_b) is how many parameters of block b the data determine: MacKay's fixed point is a' w_b K_b a = that.
A row may be the mean of several observations of one f, which then has r of them: these are as probable as their mean,
times (2 pi sigma^2)^(-count / 2) exp(-scatter / 2 sigma^2) and what no scale changes (`Repeats`).
Each log scale has a wide Gaussian prior, so that a block of zeros stays where it began.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from bayeslora.readouts.regression import cholesky
from bayeslora.system.devices import threads_for

PRIOR_STD = 3.0
"""Of the log scales around their starts: a factor of 20 either way costs half a nat."""

_REACH = 12.0
"""How far a log scale may move from its start: beyond, a block is off, or there is no noise."""


@dataclass(frozen=True)
class Repeats:
    """What rows that are means of observations do not say of these.

    Args:
        count: How many observations there are beyond one a row, weights counted as parts of one.
        scatter: Sum of the squares of their distances from the means.
    """

    count: float = 0.0
    scatter: float = 0.0


_NONE = Repeats()


@dataclass(frozen=True)
class Scales:
    """What the evidence chose.

    Args:
        weights: Prior variance of each block [blocks].
        noise: Noise variance sigma^2.
        log_evidence: Of the targets, nats, without the prior on the scales.
        effective_parameters: Of each block [blocks]; their sum is at most the number of targets.
    """

    weights: Tensor
    noise: float
    log_evidence: float
    effective_parameters: Tensor

    def kernel(self, kernels: Sequence[Tensor] | Tensor) -> Tensor:
        """The weighted sum of kernels of these blocks, each [rows, columns]."""
        return combined(kernels, self.weights)


def combined(kernels: Sequence[Tensor] | Tensor, weights: Tensor) -> Tensor:
    """sum_b w_b K_b, without a stack of all."""
    total = torch.zeros_like(kernels[0])
    for kernel, weight in zip(kernels, weights.tolist(), strict=True):
        total.add_(kernel, alpha=weight)
    return total


def log_evidence(
    kernels: Sequence[Tensor] | Tensor,
    targets: Tensor,
    log_weights: Tensor,
    log_noise: float,
    precision: Tensor | None = None,
    repeats: Repeats = _NONE,
) -> tuple[float, Tensor, Tensor]:
    """Log evidence, its gradient, and the blocks' effective parameters.

    Args:
        kernels: One for each block, [rows, rows], float64.
        targets: [rows, outputs], float64.
        log_weights: [blocks].
        log_noise: log sigma^2.
        precision: r [rows], how much each row's noise is smaller than sigma^2. Default: 1.
        repeats: Of rows that are means of several observations.

    Returns:
        The log evidence in nats; its gradient by the log weights and, last, the log noise [blocks + 1]; tr(P w_b K_b)
        summed over outputs [blocks].
    """
    rows, outputs = targets.shape
    weights = log_weights.exp()
    noise = torch.full((rows,), float(np.exp(log_noise)), dtype=targets.dtype)
    noise = noise if precision is None else noise / precision
    covariance = combined(kernels, weights)
    covariance.diagonal().add_(noise)
    factor = cholesky(covariance)
    solved = torch.cholesky_solve(targets, factor)
    inverse = torch.cholesky_inverse(factor)
    log_determinant = 2 * factor.diagonal().log().sum()
    value = -((targets * solved).sum() + outputs * (log_determinant + rows * np.log(2 * np.pi))) / 2
    beyond = repeats.scatter / float(np.exp(log_noise))
    value -= (repeats.count * (np.log(2 * np.pi) + log_noise) + beyond) / 2
    traces = weights * torch.stack([torch.dot(inverse.flatten(), kernel.flatten()) for kernel in kernels])
    fits = weights * torch.stack([(solved * (kernel @ solved)).sum() for kernel in kernels])
    slope = ((solved**2).sum(1) * noise).sum() - outputs * (inverse.diagonal() * noise).sum()
    slope += beyond - repeats.count
    gradient = torch.cat([fits - outputs * traces, slope.unsqueeze(0)]) / 2
    return float(value), gradient, outputs * traces


def fit_scales(
    kernels: Sequence[Tensor] | Tensor,
    targets: Tensor,
    precision: Tensor | None = None,
    start: Scales | None = None,
    repeats: Repeats = _NONE,
) -> Scales:
    """The block weights and the noise of the largest evidence (times the wide prior), by L-BFGS.

    Args:
        kernels: One for each block, [rows, rows], of mean diagonal about 1 (or 0).
        targets: [rows, outputs].
        precision: As in `log_evidence`.
        start: Where to begin, and the middle of the prior. Default: the targets' variance, half of it noise.
        repeats: As there.

    Raises:
        ValueError: There are no rows, or a number is not finite.
    """
    _check(kernels, targets)
    variance = max(float((targets**2).mean()), 1e-8)
    middle = np.log([variance / 2 / len(kernels)] * len(kernels) + [variance / 2])
    if start is not None:
        middle = np.log([*start.weights.tolist(), start.noise])

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient, _ = log_evidence(
            kernels, targets, torch.from_numpy(point[:-1]), float(point[-1]), precision, repeats
        )
        away = (point - middle) / PRIOR_STD
        return (away**2).sum() / 2 - value, away / PRIOR_STD - gradient.numpy()

    bounds = [(center - _REACH, center + _REACH) for center in middle]
    with threads_for(len(targets)):
        found = minimize(
            loss, middle, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 60, "ftol": 1e-7}
        )
    log_weights = torch.from_numpy(np.asarray(found.x[:-1], dtype=np.float64))
    value, _, effective = log_evidence(kernels, targets, log_weights, float(found.x[-1]), precision, repeats)
    return Scales(log_weights.exp(), float(np.exp(found.x[-1])), value, effective)


def _check(kernels: Sequence[Tensor] | Tensor, targets: Tensor) -> None:
    if not len(targets):
        raise ValueError("there is nothing to fit: expected items with at least two choices and labels, got none.")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in (targets, *kernels)):
        raise ValueError(
            "features and targets must be finite numbers, got NaN or infinity; a model that overflows in float16 needs "
            "float32 or bfloat16."
        )

"""The Laplace approximation of the marginal likelihood, and the prior precision that maximises it."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from bayeslora.methods.laplace_approximation.kronecker import KroneckerBlock


def eigenvalues(blocks: Iterable[KroneckerBlock]) -> Tensor:
    """The curvature's eigenvalues that are not zero, of all blocks, in float64 on the CPU."""
    return torch.cat([block.eigenvalues.flatten() for block in blocks]).double().cpu()


def log_evidence(log_likelihood: float, squared_norm: float, curvature: Tensor, prior_precision: float) -> float:
    """log p(D), nats, with the prior N(0, I / prior_precision) on the P weights (arXiv 2308.13111).

    log p(D | theta) - prior_precision / 2 |theta|^2 + P / 2 log prior_precision - 1/2 log det(curvature +
    prior_precision I). The last two together are -1/2 sum log(1 + eigenvalue / prior_precision), in which directions
    without curvature, and so P, do not appear.

    Args:
        log_likelihood: Of all training items at theta, nats.
        squared_norm: |theta|^2.
        curvature: Eigenvalues of the curvature of the summed loss that are not zero.
        prior_precision: Of each weight.
    """
    penalty = prior_precision * squared_norm + float(torch.log1p(curvature / prior_precision).sum())
    return log_likelihood - penalty / 2


def fit_prior(
    given: float | None, log_likelihood: float, squared_norm: float, curvature: Tensor, option: str
) -> tuple[float, float, Tensor]:
    """The prior precision, the log evidence (nats), and of each direction the share that the data determine.

    Args:
        given: The precision; None: that of the largest evidence.
        log_likelihood: As the others in `log_evidence`.
        squared_norm: |theta|^2.
        curvature: Eigenvalues.
        option: As in `best_prior_precision`, whose error it raises.
    """
    precision = best_prior_precision(squared_norm, curvature, option) if given is None else given
    evidence = log_evidence(log_likelihood, squared_norm, curvature, precision)
    return precision, evidence, curvature / (curvature + precision)


def best_prior_precision(squared_norm: float, curvature: Tensor, option: str = "prior_precision") -> float:
    """The prior precision with the largest `log_evidence`.

    The derivative by log prior_precision, (sum e / (e + prior_precision) - prior_precision |theta|^2) / 2, falls
    strictly, so there is one maximum and a bracketed search finds it. It lies where the sum, between
    e_max / (e_max + prior_precision) and the number of eigenvalues, meets prior_precision |theta|^2.

    Args:
        squared_norm: |theta|^2.
        curvature: As in `log_evidence`.
        option: The method's, to be given a number where there is no maximum.

    Raises:
        ValueError: There is no curvature or no weight to choose it by.
    """
    if squared_norm <= 0 or curvature.numel() == 0:
        raise ValueError(
            "the evidence has no maximum where the weights are all zero, as those of B are before training, or the "
            f"training items say nothing about them (every item predicted with probability 1); give {option} a number."
        )
    top = float(curvature.max())
    highest = curvature.numel() / squared_norm
    lowest = min(top, 1 / squared_norm) / 4
    found = minimize_scalar(
        lambda logarithm: -log_evidence(0.0, squared_norm, curvature, math.exp(logarithm)),
        bounds=(math.log(lowest), math.log(highest)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return math.exp(found.x)

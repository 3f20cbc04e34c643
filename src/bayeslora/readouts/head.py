"""A Bayesian head on option vectors: everything is chosen by the training items themselves, and no dev set is needed.

Utilities f = sum_b sqrt(w_b) x_b' beta_b with standard normal beta_b, one prior variance w_b for each block, regressed
on the labels' one-hot contrasts. The evidence chooses w and the noise, leave-one-out the temperature and, where labels
look wrong, how much each item counts. A head is its training vectors and a dozen numbers; all else is computed again
when it is loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bayeslora.prediction.predictive import Predictive
from bayeslora.readouts.blocks import BlockScaling, OptionFeatures
from bayeslora.readouts.contrasts import Contrasts
from bayeslora.readouts.evidence import Scales, fit_scales
from bayeslora.readouts.label_noise import LabelNoise, fit_temperature_and_noise
from bayeslora.readouts.novelty import Novelty
from bayeslora.readouts.predictive import softmax_predictive
from bayeslora.readouts.regression import Regression, Utilities
from bayeslora.readouts.sparse import SparseRegression

__all__ = ["EXACT_ROWS", "Head", "HeadPrediction", "fit_head"]

logger = logging.getLogger("bayeslora")

EXACT_ROWS = 5000
"""Contrasts of training items up to which the regression is exact; beyond, `INDUCING_ROWS` of them stand for all."""

INDUCING_ROWS = 1024

EVIDENCE_ROWS = 1200
"""Contrasts on which the scales are chosen: one look at the evidence costs their number to the third power."""

_WRONG_SHARE = 0.05
"""Share of wrong labels below which all items count alike."""

_ROUNDS = 3
_AT_ONCE = 256
"""Items."""


@dataclass(frozen=True)
class HeadPrediction:
    """What a head says of items.

    Args:
        predictive: Probabilities, entropy and mutual information (nats).
        variance: Posterior variance of the utilities, of a choice against the mean of all, averaged over the choices
            [items]; nats squared.
        novelty: [items], in [0, 1] (`bayeslora.readouts.novelty`).
    """

    predictive: Predictive
    variance: Tensor
    novelty: Tensor


@dataclass(frozen=True)
class Head:
    """A fitted head.

    Args:
        features: Of the items that carry the posterior: all training items, or the inducing ones.
        scaling: Of the features.
        scales: Weights of the blocks, and the noise.
        noise: The temperature, and how many labels look wrong.
        posterior: Over functions.
        novelty: Of questions.
    """

    features: OptionFeatures
    scaling: BlockScaling
    scales: Scales
    noise: LabelNoise
    posterior: Regression | SparseRegression
    novelty: Novelty

    @cached_property
    def _rows(self) -> Tensor:
        """Kernel inputs of the items that carry the posterior."""
        return _weighted(self.scaling, self.scales, self.features)

    def utilities(self, features: OptionFeatures) -> Utilities:
        """Posterior of the contrasts of items, in units of the labels."""
        contrasts, rows = Contrasts(features.mask), _weighted(self.scaling, self.scales, features)
        padded = contrasts.padded(rows)
        return self.posterior.predict(rows @ self._rows.T, padded @ padded.mT, contrasts.places)

    def predict(self, features: OptionFeatures, *, temperature: float | None = None) -> HeadPrediction:
        """Predict items; their numbers do not depend on what else is among them.

        Args:
            features: Of the items, with the blocks of the training.
            temperature: T. Default: that of the fit.

        Raises:
            ValueError: The items lack a block.
        """
        known = {**features.hidden, **features.numbers}
        if missing := [name for name in self.scaling.scales if name not in known]:
            raise ValueError(f"the head reads {missing[0]!r}, which these features lack; read them as in training.")
        scale = self.scales.noise * (self.noise.temperature if temperature is None else temperature)
        parts = [self._part(features[one : one + _AT_ONCE], scale) for one in range(0, len(features), _AT_ONCE)]
        return HeadPrediction(
            Predictive.concatenate([part.predictive for part in parts]),
            torch.cat([part.variance for part in parts]),
            torch.cat([part.novelty for part in parts]),
        )

    def _part(self, features: OptionFeatures, scale: float) -> HeadPrediction:
        utilities = self.utilities(features)
        variance = utilities.covariance.diagonal(dim1=1, dim2=2).sum(-1) / features.mask.sum(-1) / scale**2
        predictive = softmax_predictive(utilities, Contrasts(features.mask), scale)
        return HeadPrediction(predictive, variance, self.novelty(features.questions))


def fit_head(features: OptionFeatures, labels: Tensor, *, label_noise: bool = True) -> Head:
    """The head of training items.

    Args:
        features: Of the training items.
        labels: [items].
        label_noise: Whether labels may be wrong: where leave-one-out predictions say that more than 5 % are, items that
            look wrong count less.

    Raises:
        ValueError: No item has two choices, a label is no choice, or a feature is not finite.
    """
    scaling = BlockScaling.of(features)
    targets, owners = Contrasts(features.mask).targets(labels), Contrasts(features.mask).owners
    precision = torch.ones(len(features), dtype=torch.float64)
    scales = _choose_scales(scaling, features, labels, precision)
    posterior, carriers, left_out = _posterior(scaling, scales, features, targets, precision[owners])
    choices = features.mask.sum(-1)
    noise = fit_temperature_and_noise(left_out, labels, choices, noisy=label_noise)
    for _ in range(_ROUNDS if noise.share > _WRONG_SHARE else 0):
        precision = noise.right.clamp_min(1e-3)
        scales = _choose_scales(scaling, features, labels, precision)
        posterior, carriers, left_out = _posterior(scaling, scales, features, targets, precision[owners])
        noise = fit_temperature_and_noise(left_out, labels, choices)
    return Head(carriers, scaling, scales, noise, posterior, Novelty.of(features.questions))


def _weighted(scaling: BlockScaling, scales: Scales, features: OptionFeatures) -> Tensor:
    """Inputs whose products are the prior covariance [contrasts, features], float64."""
    inputs = scaling(features).values()
    return torch.cat([rows.double() * weight**0.5 for rows, weight in zip(inputs, scales.weights, strict=True)], -1)


def _choose_scales(scaling: BlockScaling, features: OptionFeatures, labels: Tensor, precision: Tensor) -> Scales:
    """By the evidence of all items, or of so many evenly spread ones as have `EVIDENCE_ROWS` contrasts."""
    chosen = _spread(features.mask, EVIDENCE_ROWS)
    some, contrasts = features[chosen], Contrasts(features.mask[chosen])
    kernels = [(rows @ rows.T).double() for rows in scaling(some).values()]
    return fit_scales(kernels, contrasts.targets(labels[chosen]), precision[chosen][contrasts.owners])


def _spread(mask: Tensor, rows: int) -> Tensor:
    """Evenly spread items with at most so many contrasts [chosen]; all where there are no more."""
    total = int((mask.sum(-1) - 1).sum())
    count = len(mask) if total <= rows else max(1, len(mask) * rows // total)
    return torch.arange(count) * len(mask) // count


def _posterior(
    scaling: BlockScaling, scales: Scales, features: OptionFeatures, targets: Tensor, precision: Tensor
) -> tuple[Regression | SparseRegression, OptionFeatures, Predictive]:
    """The posterior, the items that carry it, and the leave-one-out predictions of all at T = 1."""
    contrasts = Contrasts(features.mask)
    if len(contrasts) <= EXACT_ROWS:
        rows = _weighted(scaling, scales, features)
        exact = Regression.condition(rows @ rows.T, targets, scales.noise / precision)
        left_out = exact.leave_one_out(contrasts.places)
        return exact, features, softmax_predictive(left_out, contrasts, scales.noise)
    return _sparse_posterior(scaling, scales, features, targets, scales.noise / precision)


def _sparse_posterior(
    scaling: BlockScaling, scales: Scales, features: OptionFeatures, targets: Tensor, noise: Tensor
) -> tuple[SparseRegression, OptionFeatures, Predictive]:
    carriers = features[_spread(features.mask, INDUCING_ROWS)]
    inducing = _weighted(scaling, scales, carriers)
    places = Contrasts(features.mask).places

    def chunks() -> Iterator[tuple[OptionFeatures, Tensor, Tensor]]:
        for first in range(0, len(features), _AT_ONCE):
            rows = places[first : first + _AT_ONCE]
            yield (
                features[first : first + _AT_ONCE],
                _weighted(scaling, scales, features[first : first + _AT_ONCE]),
                rows[rows >= 0],
            )

    posterior = SparseRegression.condition(
        inducing @ inducing.T, ((inputs @ inducing.T, targets[rows], noise[rows]) for _, inputs, rows in chunks())
    )
    parts = []
    for some, inputs, rows in chunks():
        contrasts = Contrasts(some.mask)
        padded = contrasts.padded(inputs)
        left_out = posterior.leave_one_out(
            inputs @ inducing.T, padded @ padded.mT, targets[rows], noise[rows], contrasts.places
        )
        parts.append(softmax_predictive(left_out, contrasts, scales.noise))
    return posterior, carriers, Predictive.concatenate(parts)

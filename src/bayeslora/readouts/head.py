"""A Bayesian head on option vectors: everything is chosen by the training items themselves, and no dev set is needed.

Utilities f = sum_b sqrt(w_b) x_b' beta_b with standard normal beta_b, one prior variance w_b for each block, regressed
on the labels' one-hot contrasts. A label that is a distribution is as many labels as it has choices, each counting by
its probability: their mean is the regression's, and their scatter the evidence's. The weight of an item is how often it
stands there, and divides its noise variance. The evidence chooses w and the noise, leave-one-out the temperature and,
where labels look wrong, how much each item counts. A head is its training vectors and a dozen numbers; all else is
computed again when it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from bayeslora.prediction.predictive import Predictive
from bayeslora.readouts.blocks import BlockScaling, OptionFeatures
from bayeslora.readouts.contrasts import Contrasts
from bayeslora.readouts.evidence import Repeats, Scales, fit_scales
from bayeslora.readouts.label_noise import LabelNoise, fit_temperature_and_noise, fit_to_distributions
from bayeslora.readouts.novelty import Novelty
from bayeslora.readouts.predictive import softmax_predictive
from bayeslora.readouts.regression import Regression, Utilities
from bayeslora.readouts.sparse import SparseRegression
from bayeslora.system.devices import threads_for

EXACT_ROWS = 5000
"""Contrasts of training items up to which the regression is exact; beyond, `INDUCING_ROWS` of them stand for all."""

INDUCING_ROWS = 1024

EVIDENCE_ROWS = 1200
"""Contrasts on which the scales are chosen: one look at the evidence costs their number to the third power."""

_FEW_POINTS = 64
"""Of the integral over an item's utilities, where so many items are left out that all points would fill the memory."""

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
        labels: Of the training items [items], or the probabilities of their choices [items, choices].
        precision: How much each training item counts [items]: its weight, less where its label looks wrong.
        scaling: Of the features.
        scales: Weights of the blocks, and the noise.
        noise: The temperature, and how many labels look wrong.
        posterior: Over functions.
        novelty: Of questions.
    """

    features: OptionFeatures
    labels: Tensor
    precision: Tensor
    scaling: BlockScaling
    scales: Scales
    noise: LabelNoise
    posterior: Regression | SparseRegression
    novelty: Novelty

    @cached_property
    def _rows(self) -> Tensor:
        """Kernel inputs of the items that carry the posterior."""
        return _weighted(self.scaling, self.scales, self.features)

    def check(self, features: OptionFeatures) -> None:
        """Whether the features have what the head reads.

        Raises:
            ValueError: They lack a block, or one has another width.
        """
        known = {**features.hidden, **features.numbers}
        for name, scale in self.scaling.scales.items():
            width = known[name].shape[-1] if name in known else None
            if width != len(scale):
                came = "there is none" if width is None else f"it has {width}"
                raise ValueError(
                    f"the head reads {len(scale)} features of {name!r}, but {came}; use the base model and options "
                    "(likelihood, prior) that it was fitted with."
                )

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
        self.check(features)
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


def fit_head(
    features: OptionFeatures, labels: Tensor, *, weights: Tensor | None = None, label_noise: bool | float = False
) -> Head:
    """The head of training items.

    Args:
        features: Of the training items.
        labels: [items], or the probabilities of the choices [items, choices].
        weights: How often each item counts, as if it stood there so often [items]; it is left out as a whole. Default:
            once.
        label_noise: Whether labels may be wrong: where leave-one-out predictions say clearly that some are, items that
            look wrong count less. A number is the share of labels that were drawn at random, where that is known.

    Raises:
        ValueError: No item has two choices, a label is no choice, or a feature is not finite.
    """
    with threads_for(int(features.mask.sum()) - len(features)):
        scaling = BlockScaling.of(features, weights)
        counting = torch.ones(len(features), dtype=torch.float64) if weights is None else weights.double()
        precision, scales = counting, _choose_scales(scaling, features, labels, counting)
        fitted = _fit(scaling, scales, features, labels, counting, precision, label_noise)
        for _ in range(_ROUNDS if fitted.noise.share else 0):
            precision = counting * fitted.noise.right.clamp_min(1e-3)
            fitted = _fit(scaling, scales, features, labels, counting, precision, label_noise)
        novelty = Novelty.of(features.questions)
    return Head(labels=labels, precision=precision, scaling=scaling, novelty=novelty, **fitted._asdict())


def given(head: Head, features: OptionFeatures, labels: Tensor, precision: Tensor) -> Head:
    """`head` with its scales and temperature, and the posterior given these items."""
    carriers, posterior, _ = _posterior(head.scaling, head.scales, features, labels, precision)
    return replace(head, features=carriers, labels=labels, precision=precision, posterior=posterior)


class _Fitted(NamedTuple):
    """What one round gives: the names are those of `Head`."""

    features: OptionFeatures
    scales: Scales
    noise: LabelNoise
    posterior: Regression | SparseRegression


def _fit(
    scaling: BlockScaling,
    scales: Scales,
    features: OptionFeatures,
    labels: Tensor,
    counting: Tensor,
    precision: Tensor,
    label_noise: bool | float,
) -> _Fitted:
    carriers, posterior, left_out = _posterior(scaling, scales, features, labels, precision)
    fit = fit_temperature_and_noise if labels.dim() == 1 else fit_to_distributions
    noise = fit(left_out(), labels, features.mask.sum(-1), counting, noisy=label_noise)
    return _Fitted(carriers, scales, noise, posterior)


def _posterior(
    scaling: BlockScaling, scales: Scales, features: OptionFeatures, labels: Tensor, precision: Tensor
) -> tuple[OptionFeatures, Regression | SparseRegression, Callable[[], Predictive]]:
    """The items that carry the posterior, it, and what gives leave-one-out predictions of all items at T = 1."""
    contrasts = Contrasts(features.mask)
    targets = contrasts.targets(labels)
    if len(contrasts) <= EXACT_ROWS:
        exact = exact_posterior(scaling, scales, features, targets, precision)
        places = contrasts.places
        return features, exact, lambda: softmax_predictive(exact.leave_one_out(places), contrasts, scales.noise)
    carriers = features[_spread(features.mask, INDUCING_ROWS)]
    noise = scales.noise / precision[contrasts.owners]
    return carriers, *_sparse_posterior(scaling, scales, features, carriers, targets, noise)


def exact_posterior(
    scaling: BlockScaling, scales: Scales, features: OptionFeatures, targets: Tensor, precision: Tensor
) -> Regression:
    """The posterior of these scales given the training items' contrasts [contrasts, 1]."""
    rows = _weighted(scaling, scales, features)
    return Regression.condition(rows @ rows.T, targets, scales.noise / precision[Contrasts(features.mask).owners])


def _weighted(scaling: BlockScaling, scales: Scales, features: OptionFeatures) -> Tensor:
    """Inputs whose products are the prior covariance [contrasts, features], float64."""
    inputs = scaling(features).values()
    return torch.cat([rows.double() * weight**0.5 for rows, weight in zip(inputs, scales.weights, strict=True)], -1)


def _choose_scales(scaling: BlockScaling, features: OptionFeatures, labels: Tensor, precision: Tensor) -> Scales:
    """By the evidence of all items, or of so many evenly spread ones as have `EVIDENCE_ROWS` contrasts."""
    chosen = _spread(features.mask, EVIDENCE_ROWS)
    some, contrasts = features[chosen], Contrasts(features.mask[chosen])
    kernels = [rows @ rows.T for rows in (inputs.double() for inputs in scaling(some).values())]
    own, counting = labels[chosen], precision[chosen]
    by_row = counting[contrasts.owners]
    scatter = 0.0 if own.dim() == 1 else float((counting * (1 - own.double().square().sum(-1))).sum())
    return fit_scales(kernels, contrasts.targets(own), by_row, repeats=Repeats(float((by_row - 1).sum()), scatter))


def _spread(mask: Tensor, rows: int) -> Tensor:
    """Evenly spread items with at most so many contrasts [chosen]; all where there are no more."""
    total = int((mask.sum(-1) - 1).sum())
    count = len(mask) if total <= rows else max(1, len(mask) * rows // total)
    return torch.arange(count) * len(mask) // count


def _sparse_posterior(
    scaling: BlockScaling,
    scales: Scales,
    features: OptionFeatures,
    carriers: OptionFeatures,
    targets: Tensor,
    noise: Tensor,
) -> tuple[SparseRegression, Callable[[], Predictive]]:
    """The posterior that the inducing items carry, and what gives leave-one-out predictions of all items at T = 1."""
    inducing, places = _weighted(scaling, scales, carriers), Contrasts(features.mask).places

    def chunks() -> Iterator[_Chunk]:
        for first in range(0, len(features), _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            rows, inputs = places[part][places[part] >= 0], _weighted(scaling, scales, features[part])
            yield _Chunk(Contrasts(features.mask[part]), inputs, inputs @ inducing.T, targets[rows], noise[rows])

    posterior = SparseRegression.condition(
        inducing @ inducing.T, ((chunk.cross, chunk.targets, chunk.noise) for chunk in chunks())
    )

    def left_out() -> Predictive:
        parts = []
        for contrasts, inputs, cross, own, variances in chunks():
            padded = contrasts.padded(inputs)
            utilities = posterior.leave_one_out(cross, padded @ padded.mT, own, variances, contrasts.places)
            parts.append(softmax_predictive(utilities, contrasts, scales.noise, _FEW_POINTS))
        return Predictive.concatenate(parts)

    return posterior, left_out


class _Chunk(NamedTuple):
    """Some training items: kernel inputs, kernel with the inducing rows, targets and noise variances."""

    contrasts: Contrasts
    inputs: Tensor
    cross: Tensor
    targets: Tensor
    noise: Tensor

"""Bayesian-LoRA's mean and its uncertainty in one plain pass: the Gauss-Newton posterior seen in hidden states."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from scipy.optimize import brentq
from torch import Tensor, nn

from bayeslora.methods.base import State, TrainingResult
from bayeslora.methods.gauss_newton import GaussNewton, first_items, outer_maps, posterior_of
from bayeslora.methods.laplace_approximation import ScoreCovariance
from bayeslora.methods.laplace_approximation.hidden import (
    HiddenCurvature,
    HiddenGaussian,
    HiddenScores,
    hidden_curvature,
    hidden_scores,
    middle_layer,
)
from bayeslora.methods.laplace_approximation.low_rank import learned_share
from bayeslora.models.layers import descendants
from bayeslora.options.ranges import Count
from bayeslora.scoring import ChoiceBatch
from bayeslora.scoring.trunk_cache import TrunkCache
from bayeslora.system.log import logger

_MATCHED_ITEMS = 128
"""On which the variances of both posteriors are compared: two numbers are fitted."""
_BOUND = 30.0
"""Of log prior_variance."""
_SCALARS = ("layer", "prior_variance", "scale")
_TENSORS = ("std", "values", "vectors")


class OnePass(GaussNewton):
    """Mean and uncertainty of every answer in one plain pass, with no draw, no seed and no gradient.

    Training is that of `BayesianLora`, and after it the posterior of `GaussNewton` is fitted. Of that only its shape in
    hidden states is kept: the scores of an item get the covariance of a linear readout of the hidden states in the
    middle of the adapted layers, whose Gauss-Newton matrix is that of all training items, and whose prior variance
    and scale are those at which the mean variance ratio and the mean posterior variance of training items are the
    Gauss-Newton posterior's. A prediction takes the pass that the mean takes: the adapter is an ordinary LoRA, and
    the covariance a few products beside it.

    Args:
        layer: Behind how many layers the hidden states are read; default: the middle of the adapted ones.
    """

    name = "one_pass"

    def __init__(self, layer: Count | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.layer = layer

    def fit_posterior(self, model: PeftModel, training: TrainingResult) -> State:
        """The reduced posterior.

        Raises:
            ValueError: As `GaussNewton`'s, or no transformer layer that is known has an adapter.
        """
        maps, cache = outer_maps(model), training.trunk_cache
        layer = self.layer or middle_layer(model, maps.values())
        device = next(model.parameters()).device
        whole = posterior_of(super().fit_posterior(model, training), maps, device)
        curvature = hidden_curvature(model, training.batches(), layer, cache)
        own, targets = [], []
        for batch in first_items(training.batches(), _MATCHED_ITEMS):
            own.append(_variances(curvature, hidden_scores(model, batch, layer, cache)))
            covariance = whole.scores(model, batch, maps, cache)[1]
            targets.append((covariance.ratio, covariance.total))
        prior, along = (torch.cat(parts).cpu() for parts in zip(*own, strict=True))
        ratios, variances = (torch.cat(parts).cpu() for parts in zip(*targets, strict=True))
        prior_variance = _matched(prior, along, curvature.values, float(ratios.mean()))
        reduced = prior_variance * _posterior(prior, along, curvature.values, prior_variance)
        scale = float(variances.mean() / reduced.mean().clamp_min(torch.finfo(torch.float64).tiny))
        message = "reduced to the hidden states behind layer %d: prior variance %.3g, scale %.3g"
        logger.info(message, layer, prior_variance, scale)
        scalars = dict(zip(_SCALARS, (float(layer), prior_variance, scale), strict=True))
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in scalars.items()} | {
            name: getattr(curvature, name).contiguous() for name in _TENSORS
        }

    def scores(
        self, model: nn.Module, batch: ChoiceBatch, state: State | None, trunk_cache: TrunkCache | None = None
    ) -> tuple[Tensor, ScoreCovariance]:
        """As `GaussNewton.scores`, in one plain forward.

        Raises:
            ValueError: `state` is missing, or the adapter is disabled.
        """
        if not state or not {*_SCALARS, *_TENSORS} <= state.keys():
            raise ValueError(
                "the posterior of OnePass is what fit_posterior returned (posterior.safetensors of the run folder), "
                "but state has none; give it, or ask for 0 samples, the mean."
            )
        if any(isinstance(module, LoraLayer) and module.disable_adapters for module in descendants(model)):
            raise ValueError(
                "the posterior is one of the adapter's scores, and the adapter is disabled; enable the adapter, or ask "
                "for 0 samples, the base model's."
            )
        layer, prior_variance, scale = (float(state[name]) for name in _SCALARS)
        curvature = HiddenCurvature(*(state[name] for name in _TENSORS))
        return HiddenGaussian(int(layer), curvature, prior_variance, scale).scores(model, batch, trunk_cache)


def _variances(curvature: HiddenCurvature, found: HiddenScores) -> tuple[Tensor, Tensor]:
    """Squared length of the vectors' contrasts [batch], and its parts along the curvature's eigenvectors [batch, k]."""
    own, along = curvature.along(found)
    return own.square().sum((-2, -1)), along.square().sum(1)


def _posterior(prior: Tensor, along: Tensor, values: Tensor, prior_variance: float) -> Tensor:
    """Posterior variance over prior variance, times `prior` [batch]."""
    return prior - along @ learned_share(values, prior_variance)


def _matched(prior: Tensor, along: Tensor, values: Tensor, ratio: float) -> float:
    """The prior variance at which the mean variance ratio of the items is `ratio`; it falls with it."""

    def excess(logarithm: float) -> float:
        found = _posterior(prior, along, values, math.exp(logarithm)) / prior.clamp_min(1e-300)
        return float(found.mean()) - ratio

    bounds = (-_BOUND, _BOUND)
    ends = [excess(end) for end in bounds]
    if ends[0] * ends[1] > 0:  # The whole posterior is beyond what these states can be: as near as they come.
        return math.exp(min(zip(map(abs, ends), bounds, strict=True))[1])
    solve: Callable[..., float] = brentq
    return math.exp(solve(excess, *bounds, xtol=1e-6))

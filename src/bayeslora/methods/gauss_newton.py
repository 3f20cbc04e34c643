"""Bayesian-LoRA whose posterior carries the data: a Gauss-Newton covariance around a mean trained under noise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor, nn

from bayeslora.adapters.units import layer_units
from bayeslora.methods.base import State, TrainingResult
from bayeslora.methods.bayesian_lora import BayesianLora
from bayeslora.methods.laplace_approximation import (
    LOGIT_DRAWS,
    GaussianLogits,
    LowRankGaussian,
    ScoreCovariance,
    Subspace,
    covariance_root,
    fit_prior,
    leading_directions,
    lora_maps,
    low_rank_curvature,
)
from bayeslora.options.ranges import Positive, Size
from bayeslora.prediction.predictive import Predictive
from bayeslora.scoring import ChoiceBatch
from bayeslora.scoring.trunk_cache import TrunkCache
from bayeslora.system.log import logger

_LOG_EVIDENCE, _PRIOR_VARIANCE, _VALUES, _VECTORS = "log_evidence", "prior_variance", "values", "vectors"
_FIRST_ITEMS = 256
"""From which the directions are found; the curvature along them is that of all items."""
_RANK = 2048
"""Rows of the curvature that are kept as they are: 2 x this; beyond it the leading directions."""
_NEGLIGIBLE = 1e-3
"""Of the prior's variance: what a direction takes off it at least, to be kept."""


class GaussNewton(BayesianLora):
    """Bayesian-LoRA, then a posterior around its mean in closed form, which knows what the data say.

    Training is that of `BayesianLora`: its noise makes a good mean. Its q(V) is not used: it holds no data. One or two
    passes over the training items give the Gauss-Newton matrix of the loss by the factors B of all layers, along a few
    inducing directions of each and with the full covariance between them; the evidence of the Laplace approximation
    (MacKay, Neural Computation 4(3), 1992) gives the prior's scale, without a dev set. Predictions are in closed form,
    the mean softmax of the Gaussian that the scores of an item have in the model linearised at its mean, without a
    seed. So it is a Laplace approximation around a mean trained under noise. The factors A and `modules_to_save` keep
    their values. Draws of the weights themselves, as for generated texts
    and `export --draws`, are those of `BayesianLora`.

    Also for an adapter that is trained already: `init_from` it, and train 0 epochs.

    Args:
        directions: Inducing directions of each B, those of the largest curvature; across them the variance stays the
            prior's.
        columns: Of each item's output Hessian so many leading eigenvectors count, one backward pass each.
        prior_scale: Prior standard deviation of the weights of B, in units that make an update of 1 as large as the
            base model's own weights; "evidence" maximises the marginal likelihood.
    """

    name = "gauss_newton"
    needs_items = True
    closed_form = True

    def __init__(
        self,
        directions: Size = 32,
        columns: Size = 2,
        prior_scale: Positive | Literal["evidence"] = "evidence",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.directions = directions
        self.columns = columns
        self.prior_scale = prior_scale

    def fit_posterior(self, model: PeftModel, training: TrainingResult) -> State:
        """The curvature's directions and eigenvectors, the prior's variance and the log evidence (nats).

        Raises:
            ValueError: The model has no LoRA adapter on linear layers, or the evidence has no maximum.
        """
        maps, cache = outer_maps(model), training.trunk_cache
        first = first_items(training.batches(), _FIRST_ITEMS)
        subspace = Subspace(leading_directions(model, maps, first, self.directions, cache), units(model, maps))
        values, vectors, log_likelihood = low_rank_curvature(
            model, maps, training.batches(), subspace, self.columns, _RANK, cache
        )
        squared_norm = sum(
            float(one.weight.detach().double().square().sum()) / subspace.units[name] ** 2 for name, one in maps.items()
        )
        curvature = values.double().cpu()
        given = None if self.prior_scale == "evidence" else float(self.prior_scale) ** -2
        precision, evidence, learned = fit_prior(given, log_likelihood, squared_norm, curvature, "prior_scale")
        message = "Gauss-Newton posterior: prior scale %.3g, log evidence %.1f nats, %.0f effective parameters of %d"
        logger.info(message, precision**-0.5, evidence, float(learned.sum()), len(vectors))
        kept = int((learned > _NEGLIGIBLE).sum())
        return _state(LowRankGaussian(subspace, values[:kept], vectors[:, :kept], 1 / precision), evidence)

    def predict(
        self,
        model: nn.Module,
        batch: ChoiceBatch,
        num_samples: int,
        seed: int,
        trunk_cache: TrunkCache | None = None,
        state: State | None = None,
    ) -> Predictive:
        """The Gaussian over the scores, on the CPU; `num_samples` 0 is the mean, any other number all of `LOGIT_DRAWS`.

        `seed` changes nothing.

        Raises:
            ValueError: `state` is missing or belongs to another adapter.
        """
        if num_samples == 0:
            return super().predict(model, batch, 0, seed, trunk_cache)
        batch = batch.to(next(model.parameters()).device)
        logits, covariance = self.scores(model, batch, state, trunk_cache)
        root = covariance_root(covariance.posterior.cpu())
        ratio = covariance.ratio.to("cpu", logits.dtype)
        return GaussianLogits(logits.cpu(), root.to(logits.dtype), variance_ratio=ratio)

    def scores(
        self, model: nn.Module, batch: ChoiceBatch, state: State | None, trunk_cache: TrunkCache | None = None
    ) -> tuple[Tensor, ScoreCovariance]:
        """The mean's scores [batch, choices] of a batch on the model's device, and their posterior covariance.

        Raises:
            ValueError: `state` is missing or belongs to another adapter.
        """
        maps = outer_maps(model)
        posterior = posterior_of(state, maps, next(model.parameters()).device)
        return posterior.scores(model, batch, maps, trunk_cache)

    def effective_num_samples(self, num_samples: int) -> int:
        """0 for the mean; else the points of the integral over the scores, however many are asked for."""
        return LOGIT_DRAWS if num_samples else 0

    def forwards_used(self, num_samples: int) -> int:
        """One, whose gradients give the covariance."""
        return 1


def outer_maps(model: nn.Module) -> dict[str, nn.Linear]:
    """The factors B of the active adapters, by name."""
    return {name: one for name, one in lora_maps(model).items() if ".lora_B." in name}


def units(model: nn.Module, maps: Mapping[str, nn.Linear]) -> dict[str, float]:
    """Standard deviation of the weights of each B at which its update is as large as the base model's weights."""
    found = {}
    for name in maps:
        path, _, adapter = name.rpartition(".")
        layer: Any = model.get_submodule(path.rpartition(".")[0])
        found[name] = layer_units(layer, adapter)["B"]
    return found


def first_items(batches: Iterable[ChoiceBatch], items: int) -> Iterator[ChoiceBatch]:
    """The first batches that hold so many items."""
    seen = 0
    for batch in batches:
        if seen >= items:
            return
        yield batch
        seen += batch.batch_size


def _state(gaussian: LowRankGaussian, evidence: float) -> State:
    scalars = {_PRIOR_VARIANCE: gaussian.prior_variance, _LOG_EVIDENCE: evidence}
    tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in scalars.items()}
    tensors |= {_VALUES: gaussian.values, _VECTORS: gaussian.vectors}
    for name, basis in gaussian.subspace.bases.items():
        tensors[f"{name}.basis"] = basis.contiguous()
        tensors[f"{name}.unit"] = torch.tensor(gaussian.subspace.units[name], dtype=torch.float64)
    return tensors


def posterior_of(state: State | None, maps: Mapping[str, nn.Linear], device: torch.device) -> LowRankGaussian:
    """What `GaussNewton.fit_posterior` returned, as a Gaussian over `outer_maps`.

    Raises:
        ValueError: It is missing or belongs to another adapter.
    """
    if not state or _VECTORS not in state:
        raise ValueError(
            "a Gauss-Newton posterior is what fit_posterior returned (posterior.safetensors of the run folder), but "
            "state has none; give it, or ask for 0 samples, the mean."
        )
    names = [key.removesuffix(".basis") for key in state if key.endswith(".basis")]
    if set(names) != set(maps):
        raise ValueError(
            f"the posterior is one of other layers than the model's adapter (such as "
            f"{min(set(names) ^ set(maps))}); predict with the adapter and the state of the same run."
        )
    bases = {name: state[f"{name}.basis"].to(device) for name in names}
    subspace = Subspace(bases, {name: float(state[f"{name}.unit"]) for name in names})
    values, vectors = (state[key].to(device) for key in (_VALUES, _VECTORS))
    return LowRankGaussian(subspace, values, vectors, float(state[_PRIOR_VARIANCE]))

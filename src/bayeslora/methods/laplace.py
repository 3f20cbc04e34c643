"""Laplace-LoRA (arXiv 2308.13111): a Gaussian posterior around a trained LoRA adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor, nn

from bayeslora.methods.base import Method, State, TrainingResult
from bayeslora.methods.laplace_approximation import (
    LOGIT_DRAWS,
    CorrectedBlock,
    GaussianLogits,
    KroneckerBlock,
    corrected_blocks,
    covariance_root,
    eigenvalues,
    fit_prior,
    kronecker_blocks,
    logit_covariance,
    lora_maps,
    record,
)
from bayeslora.options.ranges import Positive, Size
from bayeslora.prediction.predictive import Predictive
from bayeslora.scoring import ChoiceBatch
from bayeslora.scoring.trunk_cache import TrunkCache
from bayeslora.system.log import logger

_PRIOR_PRECISION = "prior_precision"
_LOG_EVIDENCE = "log_evidence"


class LaplaceLora(Method):
    """Plain LoRA, then a Laplace approximation of the posterior over its matrices A and B.

    Training is that of `Lora`; its prior is the protocol's `prior_std`. Afterwards one pass over the training items
    gives the Kronecker-factored generalised Gauss-Newton matrix, and the marginal likelihood the prior precision.
    Predictions are the mean softmax of the linearised model's class logits, N(f(x), J Sigma J^T), over `LOGIT_DRAWS`
    points. Also for an adapter that is already trained: `init_from` it and train 0 epochs. Parts of `modules_to_save`,
    such as a classification head, keep their trained values and have no posterior.

    Args:
        layers: "all", or "last": a posterior over the last adapted transformer layer only.
        prior_precision: Of each weight of A and B, around zero; "evidence" maximises the marginal likelihood.
        kronecker_rank: Rank to which the wide Kronecker factor of each matrix is cut (10 in the paper); the
            directions cut off get the prior's variance. Default: not cut up to a width of 1024, 10 above.
        curvature: "kfac", or "ekfac": one pass more over the training items gives, in KFAC's eigenbasis, the curvature
            that the items have along each direction in place of a product of two means (arXiv 1806.03884).

    Raises:
        ValueError: An option has no such value.
    """

    name = "laplace"
    needs_items = True

    def __init__(
        self,
        layers: Literal["all", "last"] = "all",
        prior_precision: Positive | Literal["evidence"] = "evidence",
        kronecker_rank: Size | None = None,
        curvature: Literal["kfac", "ekfac"] = "kfac",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if layers not in ("all", "last"):
            raise ValueError(f"layers must be 'all' or 'last', got {layers!r}.")
        if prior_precision != "evidence" and not (isinstance(prior_precision, float | int) and prior_precision > 0):
            raise ValueError(f"prior_precision must be a positive number or 'evidence', got {prior_precision!r}.")
        if kronecker_rank is not None and kronecker_rank < 1:
            raise ValueError(f"kronecker_rank must be at least 1, got {kronecker_rank}.")
        if curvature not in ("kfac", "ekfac"):
            raise ValueError(f"curvature must be 'kfac' or 'ekfac', got {curvature!r}.")
        self.layers = layers
        self.prior_precision = prior_precision
        self.kronecker_rank = kronecker_rank
        self.curvature = curvature

    def fit_posterior(self, model: PeftModel, training: TrainingResult) -> State:
        """The posterior: prior precision, log evidence (nats), and the eigendecomposition of each map's curvature.

        Raises:
            ValueError: The model has no LoRA adapter on linear layers, or the evidence has no maximum.
        """
        maps = lora_maps(model, self.layers)
        blocks, log_likelihood = kronecker_blocks(
            model, maps, training.batches(), rank=self.kronecker_rank, trunk_cache=training.trunk_cache
        )
        if self.curvature == "ekfac":
            blocks = corrected_blocks(model, maps, training.batches(), blocks, training.trunk_cache)
        curvature = eigenvalues(blocks.values())
        squared_norm = sum(float(module.weight.detach().double().square().sum()) for module in maps.values())
        given = None if self.prior_precision == "evidence" else float(self.prior_precision)
        precision, evidence, learned = fit_prior(given, log_likelihood, squared_norm, curvature, "prior_precision")
        message = "prior precision %.4g, log evidence %.2f nats; the data determine %.1f of the weights' directions"
        logger.info(message, precision, evidence, float(learned.sum()))
        return _state(blocks, precision, evidence)

    def predict(
        self,
        model: nn.Module,
        batch: ChoiceBatch,
        num_samples: int,
        seed: int,
        trunk_cache: TrunkCache | None = None,
        state: State | None = None,
    ) -> Predictive:
        """The Gaussian over the logits, on the CPU; `num_samples` is 0, or any other number for all of `LOGIT_DRAWS`.

        `seed` moves the points of the integral, which are those of every item.

        Raises:
            ValueError: `state` is missing or belongs to another adapter.
        """
        if num_samples == 0:
            return super().predict(model, batch, 0, seed, trunk_cache)
        device = next(model.parameters()).device
        batch = batch.to(device)
        blocks, precision = _posterior(state, device)
        maps = lora_maps(model)
        if not blocks.keys() <= maps.keys():
            raise ValueError(
                f"the posterior has {min(blocks.keys() - maps.keys())}, which the model's adapter has not; predict "
                "with the adapter and the state of the same run."
            )
        logits, recording = record(model, batch, {name: maps[name] for name in blocks}, trunk_cache)
        covariance = logit_covariance(logits, recording, blocks, precision)
        root = covariance_root(covariance.cpu())
        return GaussianLogits(logits.detach().cpu(), root.to(logits.dtype), seed)

    def effective_num_samples(self, num_samples: int) -> int:
        """0 for the point estimate; else the points of the integral over the logits, however many are asked for."""
        return LOGIT_DRAWS if num_samples else 0

    def forwards_used(self, num_samples: int) -> int:
        """One, whose gradients give the covariance."""
        return 1


def _state(blocks: Mapping[str, KroneckerBlock], precision: float, evidence: float) -> State:
    scalars = {_PRIOR_PRECISION: precision, _LOG_EVIDENCE: evidence}
    tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in scalars.items()}
    for name, block in blocks.items():
        tensors |= {f"{name}.{part}": tensor for part, tensor in vars(block).items()}
    return tensors


def _posterior(state: State | None, device: torch.device) -> tuple[dict[str, KroneckerBlock], float]:
    if not state or _PRIOR_PRECISION not in state:
        raise ValueError(
            "Laplace-LoRA needs the posterior that fit_posterior returned (posterior.safetensors of the run folder) as "
            "state, but there is none; give it, or ask for 0 samples, the point estimate."
        )
    parts: dict[str, dict[str, Tensor]] = {}
    for key in sorted(state.keys() - {_PRIOR_PRECISION, _LOG_EVIDENCE}):
        name, _, part = key.rpartition(".")
        parts.setdefault(name, {})[part] = state[key].to(device)
    blocks = {name: _block(tensors) for name, tensors in parts.items()}
    return blocks, float(state[_PRIOR_PRECISION])


def _block(tensors: Mapping[str, Tensor]) -> KroneckerBlock:
    return CorrectedBlock(**tensors) if "moments" in tensors else KroneckerBlock(**tensors)

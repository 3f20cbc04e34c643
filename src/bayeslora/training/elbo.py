"""The evidence lower bound."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bayeslora.adapters.draws import random_modules
from bayeslora.adapters.random_factor import RandomFactor, stacked_kl
from bayeslora.posteriors.weights.base import KL
from bayeslora.system.processes import full_tensor

_FACTORS = {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"}


def kl_divergence(model: nn.Module, rows: int = 1) -> KL:
    """KL from the posterior of all active adapters to their prior, in nats, in its two parts.

    Exact, except for the flow posterior (Monte Carlo at the training step's noise) and the ensemble (a MAP penalty).
    Zero for a model without random modules.

    Args:
        model: With adapters.
        rows: How many rows there are, for posteriors over latent variables of each row (C-LoRA): their KL is `rows`
            times its mean over the rows of the last forward. Others do not depend on it.
    """
    modules = random_modules(model)
    factors = [module for module in modules if isinstance(module, RandomFactor)]
    parts = stacked_kl(factors)
    for module in modules:
        if not isinstance(module, RandomFactor):
            kl, count = module.kl(), rows if module.local else 1
            parts.append(KL(count * kl.inducing, count * kl.conditional))
    if not parts:
        zero = torch.zeros((), device=next(model.parameters()).device)
        return KL(zero, zero)
    device = parts[0].inducing.device
    inducing = torch.stack([part.inducing.to(device) for part in parts]).sum()
    return KL(inducing, torch.stack([part.conditional.to(device) for part in parts]).sum())


def negative_elbo(mean_nll: Tensor, kl: KL, num_examples: int, beta: float = 1.0) -> Tensor:
    """Negative ELBO per training example, nats: mean NLL + beta * KL / N.

    >>> kl = KL(inducing=torch.tensor(30.0), conditional=torch.tensor(0.0))
    >>> negative_elbo(torch.tensor(0.5), kl, num_examples=100)
    tensor(0.8000)

    Args:
        mean_nll: Mean negative log-likelihood of the batch per example (per target token for language modelling).
        kl: From `kl_divergence`.
        num_examples: N, the number of training examples (target tokens), not of batches.
        beta: 1 is the ELBO; less gives a tempered posterior.
    """
    return mean_nll + beta * kl.total / num_examples


def weight_penalty(model: nn.Module, prior_std: float) -> Tensor:
    """MAP term of a prior N(0, prior_std^2) on the plain LoRA factors: sum of w^2 / (2 prior_std^2), nats.

    It is the negative log-density up to a constant, and stands beside the KL: divided by N it makes mean NLL the
    negative log-posterior per example. Plain factors are trained ones without a distribution of their own, such as A
    and B of LoRA or B of BLoB; random ones have a prior in their KL.

    Raises:
        ValueError: `prior_std` is not positive, or the model has no plain factor that is trained.
    """
    if not 0 < prior_std < float("inf"):
        raise ValueError(f"prior_std must be above 0 and finite, got {prior_std}; leave it out for a flat prior.")
    weights = _plain_factors(model)
    if not weights:
        raise ValueError(
            "prior_std is the prior of plain LoRA factors, and this model trains none: its factors have a distribution "
            "whose prior is an option of the method. Leave train.prior_std out."
        )
    squares = [full_tensor(weight).float().square().sum() for weight in weights]
    return torch.stack([square.to(squares[0].device) for square in squares]).sum() / (2 * prior_std**2)


def _plain_factors(model: nn.Module) -> list[nn.Parameter]:
    random = {id(parameter) for module in random_modules(model) for parameter in module.parameters()}
    return [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not _FACTORS.isdisjoint(name.split(".")) and id(parameter) not in random
    ]


def kl_weight(step: int, beta: float, warmup_steps: int) -> float:
    """beta at a step: it grows linearly from 0 and reaches `beta` after `warmup_steps` steps."""
    return beta if warmup_steps <= 0 else beta * min(1.0, step / warmup_steps)

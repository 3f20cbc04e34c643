"""The evidence lower bound."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bayeslora.factors import KL, RandomFactor, stacked_kl
from bayeslora.sampling import random_modules

__all__ = ["kl_divergence", "kl_weight", "negative_elbo"]


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


def kl_weight(step: int, beta: float, warmup_steps: int) -> float:
    """beta at a step: it grows linearly from 0 and reaches `beta` after `warmup_steps` steps."""
    return beta if warmup_steps <= 0 else beta * min(1.0, step / warmup_steps)

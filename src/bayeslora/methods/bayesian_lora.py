"""Bayesian-LoRA (arXiv 2601.21003): an inducing-variable posterior on both LoRA factors."""

from __future__ import annotations

from bayeslora.adapters import BayesianLoraConfig
from bayeslora.methods.base import VariationalMethod
from bayeslora.options.from_config import options_of


@options_of(BayesianLoraConfig, posterior_learning_rate_scale=5.0)
class BayesianLora(VariationalMethod):
    """Variational inference with the ELBO; see `bayeslora.BayesianLoraConfig` for the model."""

    name = "bayesian_lora"

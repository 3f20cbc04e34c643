"""Bayesian-LoRA (arXiv 2601.21003): an inducing-variable posterior on both LoRA factors."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from peft import PeftModel
from torch import nn

from bayeslora.from_lora import from_lora
from bayeslora.methods.base import Method
from bayeslora.tuner import BayesianLoraConfig

__all__ = ["BayesianLora"]

_CONFIG_FIELDS = (
    "posterior",
    "posterior_options",
    "posterior_std",
    "prior_std",
    "inducing_std",
    "residual_scale",
    "learn_residual_scale",
    "maximum_residual_scale",
    "mean",
    "bases",
    "num_inducing",
    "inducing_diagonal",
)
"""Arguments that are fields of BayesianLoraConfig."""


class BayesianLora(Method):
    """Variational inference with the ELBO; see `bayeslora.BayesianLoraConfig` for the model.

    Args:
        posterior: Family of q(V): diagonal, matrix_normal, full, ensemble or flow.
        posterior_options: Fields of that family: members for an ensemble, transforms and hidden for a flow.
        posterior_std: Standard deviation of q(V) at the start, relative to the prior's.
        prior_std: sigma, the prior standard deviation of a weight of A or B around its mean, in units of the weight.
        inducing_std: tau, the prior standard deviation of the part of a weight that the inducing variables explain;
            null: prior_std, as in the paper.
        residual_scale: lambda in (0, 1], the scale of the conditional's standard deviation.
        learn_residual_scale: Train lambda.
        maximum_residual_scale: Upper bound of a trained lambda.
        mean: "lora": an ordinary LoRA matrix is the mean function. "inducing": the paper's, without mean function.
        bases: "lora" ties the inducing inputs to the LoRA matrices, "free" trains them.
        num_inducing: Rows and columns of V; default: the rank.
        inducing_diagonal: D at the start, in units of the inducing inputs.
        beta: Weight of the KL; 1 is the ELBO.
        kl_warmup: Share of the training steps over which the KL grows to its full weight.
        posterior_learning_rate_scale: Learning rate of the variational parameters, as a multiple of that of the means.
        init_from: Folder or Hub id of a trained LoRA adapter to start from (exact embedding). Its own rank, scale,
            targets, layers and saved modules count, not the options above. Default: a fresh adapter.
    """

    name: ClassVar[str] = "bayesian_lora"

    def __init__(
        self,
        posterior: str = "diagonal",
        posterior_options: dict[str, Any] | None = None,
        posterior_std: float = 0.25,
        prior_std: float = 0.05,
        inducing_std: float | None = 0.2,
        residual_scale: float = 1.0,
        learn_residual_scale: bool = False,
        maximum_residual_scale: float = 1.0,
        mean: Literal["lora", "inducing"] = "lora",
        bases: Literal["lora", "free"] = "lora",
        num_inducing: int | None = None,
        inducing_diagonal: float = 0.1,
        beta: float = 1.0,
        kl_warmup: float = 0.0,
        posterior_learning_rate_scale: float = 5.0,
        init_from: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.posterior = posterior
        self.posterior_options = posterior_options or {}
        self.posterior_std = posterior_std
        self.prior_std = prior_std
        self.inducing_std = inducing_std
        self.residual_scale = residual_scale
        self.learn_residual_scale = learn_residual_scale
        self.maximum_residual_scale = maximum_residual_scale
        self.mean = mean
        self.bases = bases
        self.num_inducing = num_inducing
        self.inducing_diagonal = inducing_diagonal
        self.beta = beta
        self.kl_warmup = kl_warmup
        self.posterior_learning_rate_scale = posterior_learning_rate_scale
        self.init_from = init_from

    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _CONFIG_FIELDS}

    def config(self, **lora_options: Any) -> BayesianLoraConfig:
        """The library's PEFT config."""
        return BayesianLoraConfig(**lora_options, **self._options())

    def adapt(self, model: nn.Module, kind: Literal["causal_lm", "sequence_classification"]) -> PeftModel:
        """Fresh adapters, or a posterior around the adapter of `init_from`."""
        if self.init_from is not None:
            return from_lora(model, self.init_from, **self._options())
        return super().adapt(model, kind)

    def trainer_options(self, learning_rate: float, total_steps: int) -> dict[str, Any]:
        """The ELBO's."""
        return {
            "beta": self.beta,
            "kl_warmup_steps": round(self.kl_warmup * total_steps),
            "posterior_learning_rate": learning_rate * self.posterior_learning_rate_scale,
        }

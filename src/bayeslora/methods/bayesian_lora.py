"""Bayesian-LoRA (arXiv 2601.21003): an inducing-variable posterior on both LoRA factors."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from peft import LoraConfig

from bayeslora.adapters import BayesianLoraConfig
from bayeslora.methods.base import VariationalMethod
from bayeslora.options.plain import Plain
from bayeslora.options.ranges import Positive, Range, RateScale, Size, StandardDeviation

__all__ = ["BayesianLora"]


class BayesianLora(VariationalMethod):
    """Variational inference with the ELBO; see `bayeslora.BayesianLoraConfig` for the model.

    Args:
        posterior: Family of q(V): diagonal, matrix_normal, full, ensemble or flow.
        posterior_options: Fields of that family: members for an ensemble, transforms and hidden for a flow.
        posterior_std: Standard deviation of q(V) at the start, relative to the prior's.
        prior_std: sigma, the prior standard deviation of a weight around its mean, in units of the weight; a pair is
            for the weights of A and of B.
        inducing_std: tau, the prior standard deviation of the part of a weight that the inducing variables explain, one
            or a pair; null: prior_std, as in the paper.
        residual_scale: lambda in (0, 1], the scale of the conditional's standard deviation.
        learn_residual_scale: Train lambda.
        maximum_residual_scale: Upper bound of a trained lambda.
        mean: "lora": an ordinary LoRA matrix is the mean function. "inducing": the paper's, without mean function.
        mean_std: Prior standard deviation of each weight of the LoRA mean; null: flat, no penalty on the
            mean; a pair is for A and B.
        bases: "lora" ties the inducing inputs to the LoRA matrices, "free" trains them.
        num_inducing: Rows and columns of V; default: the rank.
        inducing_diagonal: D at the start, in units of the inducing inputs.
    """

    name: ClassVar[str] = "bayesian_lora"
    config_class: ClassVar[type[LoraConfig]] = BayesianLoraConfig

    def __init__(
        self,
        posterior: str = "diagonal",
        posterior_options: dict[str, Plain] | None = None,
        posterior_std: StandardDeviation = 0.25,
        prior_std: StandardDeviation | list[StandardDeviation] = 0.05,
        inducing_std: StandardDeviation | list[StandardDeviation] | None = 0.2,
        residual_scale: Annotated[float, Range(0, 1, above=True)] = 1.0,
        learn_residual_scale: bool = False,
        maximum_residual_scale: Annotated[float, Range(0, 1, above=True)] = 1.0,
        mean: Literal["lora", "inducing"] = "lora",
        mean_std: StandardDeviation | list[StandardDeviation | None] | None = None,
        bases: Literal["lora", "free"] = "lora",
        num_inducing: Size | None = None,
        inducing_diagonal: Positive = 0.1,
        posterior_learning_rate_scale: RateScale = 5.0,
        **kwargs: Any,
    ):
        super().__init__(posterior_learning_rate_scale=posterior_learning_rate_scale, **kwargs)
        self.posterior = posterior
        self.posterior_options = posterior_options or {}
        self.posterior_std = posterior_std
        self.prior_std = prior_std
        self.inducing_std = inducing_std
        self.residual_scale = residual_scale
        self.learn_residual_scale = learn_residual_scale
        self.maximum_residual_scale = maximum_residual_scale
        self.mean = mean
        self.mean_std = mean_std
        self.bases = bases
        self.num_inducing = num_inducing
        self.inducing_diagonal = inducing_diagonal

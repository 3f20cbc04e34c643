"""The config of Bayesian-LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from bayeslora.adapters.config import RandomLoraConfig, Side
from bayeslora.adapters.registration import register
from bayeslora.adapters.units import layer_units
from bayeslora.options.plain import Plain
from bayeslora.options.ranges import Range, Size, StandardDeviation
from bayeslora.posteriors import get_posterior
from bayeslora.posteriors.weights.inducing import InducingWeights

Std = TypeVar("Std", float, float | None)


@register("BAYES_LORA")
@dataclass
class BayesianLoraConfig(RandomLoraConfig):
    """Config of Bayesian-LoRA (arXiv 2601.21003); every field of `peft.LoraConfig` works as there.

    >>> import peft, transformers
    >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    >>> base = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=50, **sizes))
    >>> config = BayesianLoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    >>> model = peft.get_peft_model(base, config)
    >>> count = model.get_nb_trainable_parameters()[0]  # plain LoRA: 256; here 2 r^2 + 2 r more for each factor
    >>> count - 256 == 8 * (2 * 2**2 + 2 * 2)
    True

    Args:
        posterior: Family of q(V): "diagonal", "matrix_normal", "full", "ensemble" or "flow".
        posterior_options: Fields of that family, such as `{"members": 5}` or `{"transforms": 2, "hidden": 32}`.
        posterior_std: Standard deviation of q(V) at the start, relative to the prior's (1 starts at the prior).
        prior_std: sigma, the prior standard deviation of a weight around its mean, in units of the weight; a pair is
            for the weights of A and of B. Noise of A stays in the r directions that B has learned, noise of B goes
            into all outputs of the layer.
        inducing_std: tau, the prior standard deviation of the part of a weight that V explains, one or a pair; None:
            `prior_std`, as in the paper. Wider, q(V) has room to learn a posterior in while the residual stays small.
        std_units: "weight": the standard deviations `prior_std`, `inducing_std` and `mean_std` are those of weights.
            "base": they are relative, of A to its own size at the start, of B to the size at which the update is as
            large as the base model's weights, so that they mean the same for every width, rank, alpha and scale of
            the base (`bayeslora.adapters.units`). For `mean="lora"`.
        residual_scale: lambda in (0, 1], the scale of the conditional's standard deviation. At 1 the conditional of
            the posterior is the prior's and costs no KL.
        learn_residual_scale: Train lambda, bounded above by `maximum_residual_scale` through a sigmoid.
        maximum_residual_scale: That bound.
        mean: "lora" (an ordinary trainable LoRA matrix is the mean function; learns as LoRA does) or "inducing" (the
            paper: the mean of W comes from V alone).
        mean_std: Prior standard deviation of each weight of the "lora" mean, in units of the weight; None: flat. It
            adds the MAP term `|mean|^2 / (2 mean_std^2)` to the KL: without it a long training lets the mean outgrow
            the noise. A pair is for A and B: `[None, 0.3]` leaves A, which starts at random, free.
        bases: "lora" ties the inducing inputs Z to the LoRA matrices and adds only m x m parameters per factor;
            "free" trains them.
        num_inducing: m, rows and columns of V. Default: the rank r of each adapted layer.
        inducing_diagonal: D at the start, in units of Z.

    Raises:
        ValueError: A value out of range, an unknown posterior, or an option of LoRA that cannot be combined.
    """

    posterior: str = "diagonal"
    posterior_options: dict[str, Plain] = field(default_factory=dict)
    posterior_std: StandardDeviation = 0.25
    prior_std: StandardDeviation | list[StandardDeviation] = 0.05
    inducing_std: StandardDeviation | list[StandardDeviation] | None = 0.2
    std_units: Literal["weight", "base"] = "weight"
    residual_scale: Annotated[float, Range(0, 1, above=True)] = 1.0
    learn_residual_scale: bool = False
    maximum_residual_scale: Annotated[float, Range(0, 1, above=True)] = 1.0
    mean: Literal["lora", "inducing"] = "lora"
    mean_std: StandardDeviation | list[StandardDeviation | None] | None = None
    bases: Literal["lora", "free"] = "lora"
    num_inducing: Size | None = None
    inducing_diagonal: Annotated[float, Range(2e-3, 1e9, above=True)] = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mean == "inducing" and self.bases == "lora":
            self.bases = "free"
        self._check()

    def _check(self) -> None:
        for name in ("prior_std", "inducing_std", "mean_std"):
            _pair(name, getattr(self, name))
        if self.std_units == "base" and self.mean != "lora":
            raise ValueError(
                f"std_units='base' is for mean='lora', got mean={self.mean!r}: without a mean function the mean of W "
                "is in units of its noise; take std_units='weight'."
            )
        bound = self.maximum_residual_scale
        if self.learn_residual_scale and not self.residual_scale < bound:
            raise ValueError(
                f"a trained residual_scale must start below maximum_residual_scale, got {self.residual_scale} and "
                f"{bound}; lower residual_scale, for example to {0.9 * bound:.3g}."
            )
        get_posterior(self.posterior, 2, 2, self.posterior_std, **self.posterior_options)

    def family(self, side: Side, rows: int, columns: int) -> InducingWeights:
        """q(W) of one factor `[rows, columns]`.

        Raises:
            ValueError: `num_inducing` differs from the rank while the bases are tied to the LoRA matrices.
        """
        rank = rows if side == "A" else columns
        inducing = rank if self.num_inducing is None else self.num_inducing
        if self.bases == "lora" and inducing != rank:
            raise ValueError(
                f"num_inducing={inducing} needs bases='free': with bases='lora' it is the rank of the layer ({rank})."
            )
        position = 0 if side == "A" else 1
        return InducingWeights(
            rows,
            columns,
            side,
            inducing,
            posterior=self.posterior,
            posterior_options=tuple(sorted(self.posterior_options.items())),
            posterior_std=self.posterior_std,
            prior_std=_pair("prior_std", self.prior_std)[position],
            inducing_std=_pair("inducing_std", self.inducing_std)[position],
            residual_scale=self.residual_scale,
            learn_residual_scale=self.learn_residual_scale,
            maximum_residual_scale=self.maximum_residual_scale,
            mean=self.mean,
            mean_std=_pair("mean_std", self.mean_std)[position],
            bases=self.bases,
            inducing_diagonal=self.inducing_diagonal,
            relative=self.std_units == "base",
        )

    def know_layer(self, layer: Any, adapter_name: str) -> None:
        """Relative standard deviations get their unit; on a meta device it comes with the adapter's file."""
        factors: dict[Side, Any] = {"A": layer.lora_A[adapter_name], "B": layer.lora_B[adapter_name]}
        if self.std_units == "weight" or layer.weight.is_meta or factors["A"].device.type == "meta":
            return
        for side, unit in layer_units(layer, adapter_name).items():
            factors[side].unit.fill_(unit)


def _pair(name: str, value: Std | Sequence[Std]) -> tuple[Std, Std]:
    """The values for A and B of an option that may be one number."""
    if not isinstance(value, Sequence):
        return value, value
    if len(value) != 2:
        raise ValueError(f"{name} must be one number or a pair for A and B, got {value}.")
    return value[0], value[1]

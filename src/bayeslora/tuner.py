"""Bayesian-LoRA as a PEFT method: its config, and the tuner that swaps random factors into PEFT's LoRA layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import peft.mapping
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraModel
from torch import nn

from bayeslora.factors import InducingFamily, Noise, RandomFactor
from bayeslora.fingerprint import check_fingerprint, fingerprint
from bayeslora.posteriors import get_posterior
from bayeslora.sampling import Draws

__all__ = ["FORMAT_VERSION", "BayesianLoraConfig", "BayesianLoraModel"]

FORMAT_VERSION = 1
"""Version of the adapter file format that this package writes."""


class _PeftType(str):
    """A PEFT type outside PEFT's own enum; transformers asks for `.value`."""

    @property
    def value(self) -> str:
        return str(self)


PEFT_TYPE = _PeftType("BAYES_LORA")

_UNSUPPORTED = {
    "use_dora": "DoRA renormalises the weights, which is not defined for several draws in one forward",
    "lora_bias": "a LoRA bias has no posterior",
    "target_parameters": "parameters that are not linear layers (fused experts) have no LoRA factors to draw",
    "alora_invocation_tokens": "activated LoRA replaces the forward of the factors",
    "use_qalora": "QA-LoRA pools the inputs of the factors",
    "use_bdlora": "BD-LoRA replaces the factors",
    "arrow_config": "Arrow routes between adapters",
    "kasa_config": "KaSA replaces the factors",
    "velora_config": "VeLoRA replaces the forward of the factors",
    "monteclora_config": "MonteCLoRA is another posterior over the same factors",
    "layer_replication": "replicated layers share their base weights, not their draws",
    "ensure_weight_tying": "tied adapters would share one draw",
}


@dataclass
class BayesianLoraConfig(LoraConfig):
    """Config of Bayesian-LoRA (arXiv 2601.21003); every field of `peft.LoraConfig` works as there, and:

    Args:
        posterior: Family of q(V): "diagonal", "matrix_normal", "full", "ensemble" or "flow".
        posterior_options: Fields of that family, such as `{"members": 5}` or `{"transforms": 2, "hidden": 32}`.
        posterior_std: Standard deviation of q(V) at the start, relative to the prior's (1 starts at the prior).
        prior_std: sigma, the prior standard deviation of a weight of A or B around its mean, in units of the weight.
        inducing_std: tau, the prior standard deviation of the part of a weight that V explains; None: `prior_std`,
            as in the paper. Wider, q(V) has room to learn a posterior in while the residual stays small.
        residual_scale: lambda in (0, 1], the scale of the conditional's standard deviation. At 1 the conditional of
            the posterior is the prior's and costs no KL.
        learn_residual_scale: Train lambda, bounded above by `maximum_residual_scale` through a sigmoid.
        maximum_residual_scale: That bound.
        mean: "lora" (an ordinary trainable LoRA matrix is the mean function; learns as LoRA does) or "inducing" (the
            paper: the mean of W comes from V alone).
        bases: "lora" ties the inducing inputs Z to the LoRA matrices and adds only m x m parameters per factor;
            "free" trains them.
        num_inducing: m, rows and columns of V. Default: the rank r of each adapted layer.
        inducing_diagonal: D at the start, in units of Z.

    Raises:
        ValueError: A value out of range, an unknown posterior, or an option of LoRA that cannot be combined.
    """

    posterior: str = field(default="diagonal", metadata={"help": "Family of q(V)."})
    posterior_options: dict[str, Any] = field(default_factory=dict, metadata={"help": "Fields of that family."})
    posterior_std: float = field(default=0.25, metadata={"help": "Standard deviation of q(V) at the start."})
    prior_std: float = field(default=0.05, metadata={"help": "sigma."})
    inducing_std: float | None = field(default=0.2, metadata={"help": "tau; None: sigma."})
    residual_scale: float = field(default=1.0, metadata={"help": "lambda."})
    learn_residual_scale: bool = field(default=False, metadata={"help": "Train lambda."})
    maximum_residual_scale: float = field(default=1.0, metadata={"help": "Bound of a trained lambda."})
    mean: Literal["lora", "inducing"] = field(default="lora", metadata={"help": "Where the mean of W comes from."})
    bases: Literal["lora", "free"] = field(default="lora", metadata={"help": "Inducing inputs."})
    num_inducing: int | None = field(default=None, metadata={"help": "m; default: the rank."})
    inducing_diagonal: float = field(default=0.1, metadata={"help": "D at the start."})
    format_version: int = field(default=FORMAT_VERSION, metadata={"help": "Version of the file format."})
    base_fingerprint: dict[str, Any] | None = field(
        default=None, metadata={"help": "What the base model looked like; written by the library."}
    )

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        self.peft_type = PEFT_TYPE
        if self.mean == "inducing" and self.bases == "lora":
            self.bases = "free"
        self._fingerprint_is_own = self.base_fingerprint is None
        self._check()

    def _check(self) -> None:
        if self.format_version > FORMAT_VERSION:
            raise ValueError(
                f"This adapter has format version {self.format_version}, this bayeslora reads up to version "
                f"{FORMAT_VERSION}; upgrade with `pip install -U bayeslora`."
            )
        for name, reason in _UNSUPPORTED.items():
            if getattr(self, name, None):
                raise ValueError(f"BayesianLoraConfig does not support {name}: {reason}. Leave {name} unset.")
        for name in ("posterior_std", "prior_std", "inducing_diagonal"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.inducing_std is not None and not self.inducing_std > 0:
            raise ValueError(f"inducing_std must be positive, got {self.inducing_std}.")
        if self.inducing_diagonal <= 2e-3:
            raise ValueError(f"inducing_diagonal must be above 0.002, got {self.inducing_diagonal}.")
        for name, allowed in (("mean", ("lora", "inducing")), ("bases", ("lora", "free"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}.")
        self._check_residual_scale()
        get_posterior(self.posterior, 2, 2, self.posterior_std, **self.posterior_options)

    def _check_residual_scale(self) -> None:
        bound = self.maximum_residual_scale
        if not 0 < bound <= 1:
            raise ValueError(f"maximum_residual_scale must lie in (0, 1], got {bound}.")
        if not 0 < self.residual_scale <= 1:
            raise ValueError(f"residual_scale (lambda) must lie in (0, 1], got {self.residual_scale}.")
        if self.learn_residual_scale and not self.residual_scale < bound:
            raise ValueError(
                f"a trained residual_scale must start below maximum_residual_scale, got {self.residual_scale} and "
                f"{bound}; lower residual_scale, for example to {0.9 * bound:.3g}."
            )

    def family(self, side: Literal["A", "B"], rows: int, columns: int) -> InducingFamily:
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
        return InducingFamily(
            rows,
            columns,
            side,
            inducing,
            posterior=self.posterior,
            posterior_options=tuple(sorted(self.posterior_options.items())),
            posterior_std=self.posterior_std,
            prior_std=self.prior_std,
            inducing_std=self.inducing_std,
            residual_scale=self.residual_scale,
            learn_residual_scale=self.learn_residual_scale,
            maximum_residual_scale=self.maximum_residual_scale,
            mean=self.mean,
            bases=self.bases,
            inducing_diagonal=self.inducing_diagonal,
        )


class _Factors(nn.ModuleDict):
    """`lora_A` or `lora_B` of a layer: refuses to have a random factor replaced by fixed weights.

    PEFT's preparation for compiled hot-swapping does that, and the posterior would be gone without a word.
    """

    def __setitem__(self, key: str, module: nn.Module) -> None:
        if key in self and isinstance(self[key], RandomFactor) and not isinstance(module, RandomFactor):
            raise NotImplementedError(
                f"the random factor of adapter {key!r} cannot be replaced by a {type(module).__name__} (compiled "
                "hot-swapping does that): the posterior would be lost. Merge the mean or a draw first, and hot-swap "
                "plain LoRA adapters."
            )
        super().__setitem__(key, module)


class BayesianLoraModel(LoraModel):
    """PEFT's LoRA tuner with random factors in the place of `lora_A[name]` and `lora_B[name]`.

    PEFT's own layers do everything else: several adapters, disabling, merging, quantised bases, saving and loading.
    """

    def _draws(self) -> Draws:
        draws = self.model.__dict__.get("bayeslora_draws")
        if draws is None:
            draws = Draws(self.model)
            self.model.__dict__["bayeslora_draws"] = draws
        return draws

    def _create_and_replace(  # type: ignore[override]
        self,
        lora_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **kwargs: Any,
    ) -> None:
        self._check_base_model(lora_config, adapter_name, target)
        training = target.training
        super()._create_and_replace(
            lora_config, adapter_name, target, target_name, parent, current_key=current_key, **kwargs
        )
        layer: Any = parent.get_submodule(target_name)
        factors = getattr(layer, "lora_A", {})
        if adapter_name not in factors or not isinstance(factors[adapter_name], nn.Linear):
            raise ValueError(
                f"Bayesian-LoRA needs linear layers, but target module {current_key!r} is a "
                f"{type(target).__name__}; leave it out of target_modules."
            )
        self._randomise(lora_config, adapter_name, layer, training)
        layers = self._draws().layers
        if not any(layer is known for known in layers):
            layers.append(layer)

    def _randomise(self, config: BayesianLoraConfig, adapter_name: str, layer: Any, training: bool) -> None:
        for name in ("lora_A", "lora_B"):
            if not isinstance(getattr(layer, name), _Factors):
                setattr(layer, name, _Factors(getattr(layer, name)))
        sides: tuple[tuple[Literal["A", "B"], Any], ...] = (("A", layer.lora_A), ("B", layer.lora_B))
        for side, container in sides:
            linear = container[adapter_name]
            family = config.family(side, linear.out_features, linear.in_features)
            factor = RandomFactor(family, linear.weight.data).to(linear.weight.device)
            factor.requires_grad_(linear.weight.requires_grad)
            # PEFT leaves new modules in train mode inside a model in eval mode; that would sample unasked.
            container[adapter_name] = factor.train(training)

    def _check_base_model(self, config: BayesianLoraConfig, adapter_name: str, target: nn.Module) -> None:
        """Note what the base model looks like, or compare with what the adapter's file noted; once per adapter."""
        # PEFT injects from its own __init__, before anything could be set up in ours.
        checked: set[str] = self.__dict__.setdefault("_checked_adapters", set())
        if adapter_name in checked:
            return
        if config._fingerprint_is_own:
            config.base_fingerprint = fingerprint(self.model, target)
        else:
            check_fingerprint(config.base_fingerprint, self.model, target, config.base_model_name_or_path)
        checked.add(adapter_name)

    def delete_adapter(self, adapter_name: str) -> None:
        """As PEFT; a new adapter of that name is compared with the base model anew."""
        super().delete_adapter(adapter_name)
        self.__dict__["_checked_adapters"].discard(adapter_name)

    # --- what merging has to mind ----------------------------------------------------------------------------------

    def _check_merge_allowed(self) -> None:
        super()._check_merge_allowed()
        draws = self._draws()
        if draws.num_samples > 1:
            raise ValueError(
                f"Cannot merge {draws.num_samples} draws into one set of weights; use "
                "`bayeslora.sampling(model, num_samples=1, seed=...)` to merge one draw, or leave the context to merge "
                "the posterior mean."
            )

    @contextmanager
    def _mean_in_train_mode(self) -> Iterator[None]:
        """Merge the mean, or the explicit draw, also while the model is in train mode."""
        factors = [factor for factor in self._draws().factors() if factor.training]
        for factor in factors:
            factor.training = False
        try:
            yield
        finally:
            for factor in factors:
                factor.training = True

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge the posterior mean, or inside `bayeslora.sampling(num_samples=1)` that draw."""
        with self._mean_in_train_mode(), torch.no_grad():
            super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)
        self._merged_noise = self._explicit_noise()

    def unmerge_adapter(self) -> None:
        """Undo `merge_adapter`.

        Raises:
            RuntimeError: Another draw is active than the one that was merged; subtracting it would corrupt the base.
        """
        if getattr(self, "_merged_noise", None) is not self._explicit_noise():
            raise RuntimeError(
                "unmerge_adapter was called with another draw than merge_adapter: call both inside the same "
                "`bayeslora.sampling` context, or both outside."
            )
        with self._mean_in_train_mode(), torch.no_grad():
            super().unmerge_adapter()

    def disable_adapter_layers(self) -> None:
        """As PEFT; a merged adapter is unmerged here, where its draw can be checked, not by the layers' forward."""
        if any(layer.merged for layer in self._draws().layers):
            self.unmerge_adapter()
        super().disable_adapter_layers()

    def _explicit_noise(self) -> Noise | None:
        draws = self._draws()
        return draws.factors()[0].noise if draws.explicit else None

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> Any:
        draws = self._draws()
        with self._mean_in_train_mode(), torch.no_grad():
            model = super()._unload_and_optionally_merge(*args, **kwargs)
        draws.remove()
        self.model.__dict__.pop("bayeslora_draws", None)
        return model

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Not defined for posteriors: always raises."""
        raise NotImplementedError(
            "add_weighted_adapter combines weights, and a weighted sum of posteriors is not the posterior of the sum; "
            "merge the means one after the other (merge_adapter), or average predictions."
        )


def _register() -> None:
    """Tell PEFT of the method; its own `register_peft_method` refuses names outside PEFT's enum."""
    peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_TYPE] = BayesianLoraConfig  # type: ignore[index]
    peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING[PEFT_TYPE] = BayesianLoraModel  # type: ignore[index]
    peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING[PEFT_TYPE] = BayesianLoraModel.prefix  # type: ignore[index]


_register()

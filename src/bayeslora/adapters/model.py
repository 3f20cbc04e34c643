"""The PEFT tuner that swaps random modules into PEFT's LoRA layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraModel
from torch import Tensor, nn

from bayeslora.adapters.base_model_check import check_fingerprint, fingerprint
from bayeslora.adapters.checks import check_targets
from bayeslora.adapters.config import Part, RandomLoraConfig
from bayeslora.adapters.draws import Draws
from bayeslora.adapters.merging import separate, untie
from bayeslora.adapters.random_factor import RandomFactor
from bayeslora.adapters.random_module import RandomModule
from bayeslora.adapters.targets import default_targets
from bayeslora.models.modalities import leave_out
from bayeslora.posteriors.weights.base import Noise


class _Factors(nn.ModuleDict):
    """`lora_A` or `lora_B` of a layer: refuses to have a random factor replaced by fixed weights.

    PEFT's preparation for compiled hot-swapping does that, and the posterior would be gone without a word.
    """

    def __setitem__(self, key: str, module: nn.Module) -> None:
        if key in self and isinstance(self[key], RandomModule) and not isinstance(module, RandomModule):
            raise NotImplementedError(
                f"the random factor of adapter {key!r} cannot be replaced by a {type(module).__name__} (compiled "
                "hot-swapping does that): the posterior would be lost. Merge the mean or a draw first, and hot-swap "
                "plain LoRA adapters."
            )
        super().__setitem__(key, module)


class RandomLoraModel(LoraModel):
    """PEFT's LoRA tuner with random modules in the place of `lora_A[name]`, `lora_B[name]` or `lora_dropout[name]`.

    PEFT's own layers do everything else: several adapters, disabling, merging, quantised bases, saving and loading.
    """

    def _draws(self) -> Draws:
        draws = self.model.__dict__.get("bayeslora_draws")
        if draws is None:
            draws = Draws(self.model)
            self.model.__dict__["bayeslora_draws"] = draws
        return draws

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """As PEFT, which looks at linear layers only; targets inside a mixture of experts are refused here.

        A new adapter leaves out what text does not reach, such as a vision tower, unless its targets name it. Where
        PEFT has no default targets for the model, they are query and value.
        """
        config: Any = self.peft_config[adapter_name]
        if config.target_modules is None:
            config.target_modules = default_targets(model)
        if config.fingerprint_is_own:
            leave_out(model, config)
        check_targets(model, config)
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def _add_targets_to_tie(self, peft_config: Any, tied_weight_keys: list[str]) -> None:
        raise ValueError(
            f"{type(peft_config).__name__} does not support ensure_weight_tying for adapted layers: tied adapters "
            f"would share one draw. Leave {', '.join(tied_weight_keys)} out of target_modules, or that unset."
        )

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
                f"{type(lora_config).__name__} needs linear layers, but target module {current_key!r} is a "
                f"{type(target).__name__}; leave it out of target_modules."
            )
        self._randomise(lora_config, adapter_name, layer, training)
        layers = self._draws().layers
        if not any(layer is known for known in layers):
            layers.append(layer)

    def _randomise(self, config: RandomLoraConfig, adapter_name: str, layer: Any, training: bool) -> None:
        for part in ("lora_A", "lora_B"):
            if not isinstance(getattr(layer, part), _Factors):
                setattr(layer, part, _Factors(getattr(layer, part)))
        trainable = layer.lora_A[adapter_name].weight.requires_grad
        device = layer.lora_A[adapter_name].weight.device
        parts: tuple[Part, ...] = ("lora_A", "lora_B", "lora_dropout")
        for part in parts:
            container = getattr(layer, part)
            random = config.randomised(part, container[adapter_name])
            if random is not None:
                # PEFT leaves new modules in train mode inside a model in eval mode; that would sample unasked.
                container[adapter_name] = random.to(device).requires_grad_(trainable).train(training)
        config.know_layer(layer, adapter_name)

    def _check_base_model(self, config: RandomLoraConfig, adapter_name: str, target: nn.Module) -> None:
        """Note what the base model looks like, or compare with what the adapter's file noted; once per adapter."""
        # PEFT injects from its own __init__, before anything could be set up in ours.
        checked: set[str] = self.__dict__.setdefault("_checked_adapters", set())
        if adapter_name in checked:
            return
        if config.fingerprint_is_own:
            config.base_fingerprint = fingerprint(self.model, target)
        else:
            check_fingerprint(config.base_fingerprint, self.model, target, config.base_model_name_or_path)
        checked.add(adapter_name)

    def delete_adapter(self, adapter_name: str) -> None:
        """As PEFT; a new adapter of that name is compared with the base model anew."""
        super().delete_adapter(adapter_name)
        self.__dict__["_checked_adapters"].discard(adapter_name)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        # PEFT knows the names of the model alone, and adapters of format version 1 have others.
        tensors = dict(state_dict)
        for name, factor in model.named_modules():
            if isinstance(factor, RandomFactor) and name.endswith(f".{adapter_name}"):
                prefix = name.removesuffix(adapter_name)
                for start in {prefix, f"base_model.model.{prefix}"}:
                    factor.renew(tensors, start)
        renamed: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(
            model=model, config=config, adapter_name=adapter_name, state_dict=tensors
        )
        return renamed

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
        if draws.explicit and not all(isinstance(module, RandomFactor) for module in draws.modules()):
            raise ValueError(
                "Cannot merge this draw: it is not one of weights but depends on the input. Use it unmerged, or "
                "leave `bayeslora.sampling` and merge the mean where the method has one."
            )

    @contextmanager
    def _mean_in_train_mode(self) -> Iterator[None]:
        """Merge the mean, or the explicit draw, also while the model is in train mode."""
        modules = [module for module in self._draws().modules() if module.training]
        for module in modules:
            module.training = False
        try:
            yield
        finally:
            for module in modules:
                module.training = True

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge the posterior mean, or inside `bayeslora.sampling(num_samples=1)` that draw.

        An adapted layer that is tied to another, such as a language-model head, gets a weight of its own.
        """
        untie(self.model, adapter_names)
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
        return draws.modules()[0].noise if draws.explicit else None

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        draws = self._draws()
        if merge:
            self._check_merge_allowed()
            untie(self.model, adapter_names)
        with self._mean_in_train_mode(), torch.no_grad():
            model: Any = super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)
        if merge:
            separate(model)
        draws.remove()
        self.model.__dict__.pop("bayeslora_draws", None)
        return model

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Not defined for posteriors: always raises."""
        raise NotImplementedError(
            "add_weighted_adapter combines weights, and a weighted sum of posteriors is not the posterior of the sum; "
            "merge the means one after the other (merge_adapter), or average predictions."
        )

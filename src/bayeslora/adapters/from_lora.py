"""A posterior around a LoRA adapter that is already trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from torch import nn

from bayeslora.adapters import BayesianLoraConfig, RandomLoraConfig
from bayeslora.adapters.draws import find_draws
from bayeslora.adapters.files import is_factor, read_adapter
from bayeslora.adapters.random_module import RandomModule
from bayeslora.adapters.starts import changes_base, with_new
from bayeslora.models.heads import saved_modules
from bayeslora.models.modalities import beside_text
from bayeslora.system.locating import run_folder
from bayeslora.system.log import logger

_PREFIX = "base_model.model."
"""In front of a module's name, in an adapter file."""


def from_lora(
    model: nn.Module,
    adapter: str | Path,
    adapter_name: str = "default",
    config_class: type[LoraConfig] = BayesianLoraConfig,
    **options: Any,
) -> PeftModel:
    """Turn a trained LoRA adapter into the mean of a posterior on `model`.

    The embedding is exact: before any training the model's mean prediction is that of the LoRA adapter. Weights of the
    head that neither the base model's checkpoint nor the adapter holds are new, trained and saved.

    Args:
        model: The base model, without adapters.
        adapter: Folder or Hub id of the LoRA adapter, or the run folder that holds it.
        adapter_name: Name of the new adapter.
        config_class: Kind of posterior.
        options: Fields of `config_class`, such as `prior_std`; those that plain LoRA has too win over the adapter's.

    Returns:
        A trainable PeftModel.

    Raises:
        FileNotFoundError: There is no such adapter.
        ValueError: The adapter is not a plain LoRA adapter, is damaged, is for another task type, or does not fit the
            model.
    """
    adapter = located_adapter(adapter)
    lora, weights = read_adapter(adapter)
    if isinstance(lora, RandomLoraConfig):
        raise ValueError(f"from_lora expects a LoRA adapter, got one of type {lora.peft_type} at {adapter}.")
    if changes_base(lora):
        raise ValueError(
            f"the LoRA adapter at {adapter} was trained with init_lora_weights={lora.init_lora_weights!r}, which "
            "changes the base weights; convert it to plain LoRA first (PEFT: save_pretrained with "
            "path_initial_model_for_weight_conversion)."
        )
    fields = {**lora_fields(lora), "modules_to_save": saved_modules(model, lora.modules_to_save)}
    config = config_class(**{**fields, **options})
    _check_task(model, config.task_type, adapter)
    peft_model = get_peft_model(model, config, adapter_name=adapter_name)
    factors = _factors(peft_model, adapter_name)
    weights = _renamed(model, _without_towers(model, weights, factors), factors)
    _embed(factors, weights, adapter)
    if isinstance(config, RandomLoraConfig) and (draws := find_draws(peft_model)) is not None:
        for layer in draws.layers:
            config.know_layer(layer, adapter_name)
    others = {key: value for key, value in weights.items() if not is_factor(key)}
    if others or lora.modules_to_save:
        whole = with_new(peft_model, others, lora, adapter_name)
        try:
            set_peft_model_state_dict(peft_model, whole, adapter_name=adapter_name)
        except KeyError as error:
            raise ValueError(f"the LoRA adapter at {adapter} is not whole: it lacks {error}.") from error
    return peft_model


def adapter_folder(path: str | Path) -> str | Path:
    """The adapter inside a run folder; any other path or Hub id as it is."""
    inside = Path(path) / "adapter"
    return inside if inside.is_dir() else path


def located_adapter(path: str | Path) -> Path:
    """The folder of an adapter, of a run's, or of one on the Hub, of which nothing but data is downloaded.

    Raises:
        FileNotFoundError: There is no such folder, and no such repository, or it cannot be reached.
    """
    return Path(adapter_folder(run_folder(path)))


def lora_fields(config: LoraConfig) -> dict[str, Any]:
    """What another adapter takes over of a LoRA config: its options, but not what belongs to that adapter alone."""
    names = [field.name for field in dataclasses.fields(LoraConfig) if field.name not in _OWN]
    return {name: getattr(config, name) for name in names}


_OWN = (
    "peft_type",
    "inference_mode",
    "base_model_name_or_path",
    "auto_mapping",
    "init_lora_weights",
    "runtime_config",
)
"""Fields that the new adapter does not take over."""


def _check_task(model: nn.Module, task_type: str | None, adapter: str | Path) -> None:
    generates = hasattr(model, "prepare_inputs_for_generation")
    if task_type == "CAUSAL_LM" and not generates:
        raise ValueError(
            f"the LoRA adapter at {adapter} is for a causal language model (task_type CAUSAL_LM), but the model is a "
            f"{type(model).__name__}. If its layers are meant to begin with that adapter, and its head anew, say "
            "from_lora(..., task_type='SEQ_CLS')."
        )


def _factors(model: PeftModel, adapter_name: str) -> dict[str, Any]:
    """A and B of each layer, by their names in an adapter file without `.weight`."""
    ends = (f".lora_A.{adapter_name}", f".lora_B.{adapter_name}")
    named = model.named_modules()
    return {name.removesuffix(f".{adapter_name}"): module for name, module in named if name.endswith(ends)}


def _renamed(model: Any, weights: dict[str, Any], factors: Mapping[str, Any]) -> dict[str, Any]:
    """`weights` by the names of this model, where they were saved from its backbone alone or from it with a head."""
    backbone = f"{_PREFIX}{getattr(model, 'base_model_prefix', '')}."
    if all(key.removesuffix(".weight") in factors for key in weights if is_factor(key)):
        return weights
    added = {key.replace(_PREFIX, backbone, 1): value for key, value in weights.items()}
    removed = {key.replace(backbone, _PREFIX, 1): value for key, value in weights.items()}
    for renamed in (added, removed):
        if {key.removesuffix(".weight") for key in renamed if is_factor(key)} == set(factors):
            logger.warning(
                "the adapter was saved from a model whose names differ by %r alone, as a backbone's do from those of "
                "the whole model; its weights are taken over by these names.",
                backbone.removeprefix(_PREFIX),
            )
            return renamed
    return weights


def _without_towers(model: nn.Module, weights: dict[str, Any], factors: Mapping[str, Any]) -> dict[str, Any]:
    """`weights` without those of parts that have no adapters here, since text does not reach them."""
    unread = tuple(f"{_PREFIX}{name}." for name in beside_text(model))
    kept = {
        key: value
        for key, value in weights.items()
        if not key.startswith(unread) or not is_factor(key) or key.removesuffix(".weight") in factors
    }
    if len(kept) < len(weights):
        logger.warning("%d factors of parts that text does not reach are left out", len(weights) - len(kept))
    return kept


def _embed(factors: Mapping[str, Any], weights: dict[str, Any], adapter: str | Path) -> None:
    given = {key.removesuffix(".weight"): value for key, value in weights.items() if is_factor(key)}
    if set(factors) != set(given):
        missing, unknown = sorted(set(factors) - set(given)), sorted(set(given) - set(factors))
        raise ValueError(
            f"The LoRA adapter at {adapter} does not fit this model: {len(missing)} factors without weights "
            f"(such as {missing[:1]}), {len(unknown)} weights without a factor (such as {unknown[:1]}). Load it on the "
            "base model it was trained on."
        )
    for name, factor in factors.items():
        if isinstance(factor, RandomModule):
            factor.embed(given[name])
        else:
            factor.load_state_dict({"weight": given[name]})

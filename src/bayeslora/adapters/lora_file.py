"""One adapter as an ordinary LoRA file: tensors, config and saved modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import save_file
from torch import Tensor, nn

from bayeslora.adapters.draws import random_factors
from bayeslora.adapters.files import is_factor
from bayeslora.adapters.random_factor import RandomFactor, forget, materialise
from bayeslora.adapters.starts import changes_base
from bayeslora.models.layers import evaluating
from bayeslora.system.files import sort_sets

_PREFIX = "base_model.model."


def adapter_name(model: PeftModel) -> str:
    """The active adapter.

    Raises:
        ValueError: Several are active.
    """
    names = list(model.active_adapters)
    if len(names) != 1:
        raise ValueError(f"one adapter can be exported at a time, but {names} are active; use model.set_adapter(name).")
    return names[0]


def adapter_config(model: PeftModel) -> Any:
    """The config of the active adapter."""
    return model.peft_config[adapter_name(model)]


def adapted_layers(model: PeftModel) -> dict[str, Any]:
    """PEFT's layers of the active adapter, by their names in an adapter file."""
    name = adapter_name(model)
    return {
        key: layer
        for key, layer in model.named_modules()
        if isinstance(layer, LoraLayer) and name in (*layer.lora_A, *layer.lora_embedding_A)
    }


def lora_tensors(model: PeftModel) -> dict[str, Tensor]:
    """A `[r, in]` and B `[out, r]` of each layer by their names in a LoRA file of scale 1, float32, on the CPU.

    They are the mean's, or inside `bayeslora.sampling(model, 1)` those of the draw. Layers of a rank below r, the
    largest, get rows and columns of zeros.

    Raises:
        ValueError: There is no low-rank update, or that of a layer is not the product of two matrices or not all of it.
    """
    name, layers = adapter_name(model), adapted_layers(model)
    if not layers:
        raise ValueError(
            "a LoRA file needs low-rank updates, but this adapter has none (full fine-tuning); export it with format "
            "'merged'."
        )
    _check(adapter_config(model), layers, name)
    rank = max(layer.r[name] for layer in layers.values())
    tensors, factors = {}, random_factors(model)
    with evaluating(model), torch.no_grad():
        materialise(factors)
        for key, layer in layers.items():
            missing = rank - layer.r[name]
            a = layer.lora_A[name].weight.float()
            b = layer.lora_B[name].weight.float() * layer.scaling[name]
            tensors[f"{key}.lora_A.weight"] = nn.functional.pad(a, (0, 0, 0, missing)).cpu()
            tensors[f"{key}.lora_B.weight"] = nn.functional.pad(b, (0, missing)).cpu()
        forget(factors)
    return tensors


def _check(config: Any, layers: Mapping[str, Any], name: str) -> None:
    if not isinstance(config, LoraConfig) or not layers:
        raise ValueError(f"expected a LoRA adapter, got one of type {config.peft_type}.")
    if changes_base(config):
        raise ValueError(
            f"init_lora_weights={config.init_lora_weights!r} changes the base weights, so the adapter alone is not the "
            "model; export it merged, or convert it first (PEFT: save_pretrained with "
            "path_initial_model_for_weight_conversion)."
        )
    for key, layer in layers.items():
        parts = [container[name] for container in (layer.lora_A, layer.lora_B) if name in container]
        if len(parts) < 2 or not all(isinstance(part, nn.Linear | RandomFactor) for part in parts):
            kinds = ", ".join(type(part).__name__ for part in parts) or "an embedding"
            raise ValueError(
                f"{key} cannot be written as a LoRA file: expected two matrices A and B, got {kinds}. (The update of "
                "C-LoRA depends on the input, in its mean as in its draws; embeddings and convolutions have files of "
                "another form.) Predict with bayeslora, or train another method on linear layers."
            )
        if name in layer.lora_variant or layer.lora_bias.get(name):
            raise ValueError(
                f"{key} is a variant of LoRA (DoRA, a LoRA bias, ...), which servers do not know; export it merged."
            )


def start_at(model: PeftModel, tensors: Mapping[str, Tensor]) -> bool:
    """Let plain LoRA begin with `lora_tensors` and `saved_tensors` of another adapter.

    Returns:
        Whether they have the names and shapes of this adapter; where not, it stays as it is.
    """
    name = adapter_name(model)
    scales = {f"{key}.lora_B.weight": layer.scaling[name] for key, layer in adapted_layers(model).items()}
    started = {key: value / scales.get(key, 1.0) for key, value in tensors.items()}
    own = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    if {key: value.shape for key, value in own.items()} != {key: value.shape for key, value in started.items()}:
        return False
    set_peft_model_state_dict(model, started, adapter_name=name)
    return True


def write_lora(model: PeftModel, folder: Path, tensors: Mapping[str, Tensor], dtype: str) -> None:
    """Write `tensors`, rounded, and the saved modules of the active adapter as a folder that plain PEFT loads.

    Raises:
        ValueError: The adapter holds trained tensors that a LoRA file does not.
    """
    contents = {key: value.to(getattr(torch, dtype)) for key, value in tensors.items()} | saved_tensors(model)
    folder.mkdir(exist_ok=True)
    config = _plain_config(model, tensors)
    config.save_pretrained(str(folder))
    sort_sets(folder, config)
    contents = {key: value.contiguous() for key, value in contents.items()}
    save_file(contents, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def saved_tensors(model: PeftModel) -> dict[str, Tensor]:
    """Tensors of `modules_to_save`, such as a classification head, by their names in an adapter file.

    Raises:
        ValueError: The adapter holds trained tensors that a LoRA file does not.
    """
    state = get_peft_model_state_dict(model, adapter_name=adapter_name(model), save_embedding_layers=False)
    others = {key: value for key, value in state.items() if not is_factor(key)}
    saved = tuple(f"{key}." for key, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper))
    unknown = [key for key in others if not key.startswith(saved)]
    if unknown:
        raise ValueError(
            f"the adapter has trained {len(unknown)} tensors that a plain LoRA file does not hold, such as "
            f"{unknown[0]}; export it merged, or train with bias='none' and without trainable_token_indices."
        )
    return {key: value.detach().cpu() for key, value in others.items()}


def _plain_config(model: PeftModel, tensors: Mapping[str, Tensor]) -> LoraConfig:
    """The config of `tensors` as a LoRA adapter of scale 1."""
    source = adapter_config(model)
    # A pattern, which servers need not understand, gives way to the names of the layers that it found.
    by_pattern = isinstance(source.target_modules, str)
    layers = [key.removeprefix(_PREFIX).removesuffix(".lora_A.weight") for key in tensors if ".lora_A." in key]
    rank = next(value.shape[0] for key, value in tensors.items() if ".lora_A." in key)
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=layers if by_pattern else list(source.target_modules),
        fan_in_fan_out=source.fan_in_fan_out,
        modules_to_save=_listed(source.modules_to_save),
        layers_to_transform=None if by_pattern else _listed(source.layers_to_transform),
        layers_pattern=None if by_pattern else source.layers_pattern,
        exclude_modules=None if by_pattern else source.exclude_modules,
        task_type=source.task_type,
        base_model_name_or_path=source.base_model_name_or_path,
        revision=source.revision,
        inference_mode=True,
    )
    config.auto_mapping = source.auto_mapping
    # LoraConfig makes a set of it, whose order differs from process to process.
    config.target_modules = _listed(config.target_modules)
    return config


def _listed(value: int | Iterable[Any] | None) -> list[Any] | None:
    if value is None:
        return None
    return [value] if isinstance(value, int) else sorted(value)

"""Merging adapters into a base model whose modules share weights, such as a language-model head and the embedding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from bayeslora.models.layers import descendants
from bayeslora.system.log import logger


def merged(model: PeftModel) -> nn.Module:
    """The base model with the active adapter in its weights, in place, as PEFT's `merge_and_unload`.

    That one adds the update to shared weights too: with an adapted head, the embedding it is tied to changes as well.
    Here the head gets a weight of its own first. What a module of `modules_to_save` was tied to is stored for itself.
    """
    base: nn.Module = model.get_base_model()
    untie(base)
    result: nn.Module = model.merge_and_unload()
    separate(result)
    return result


def untie(model: nn.Module, adapters: Sequence[str] | None = None) -> None:
    """Give each adapted layer that shares its weight with another module a copy of its own, and say so.

    Args:
        model: The base model, with adapters in it.
        adapters: Names of the adapters that will be merged; default: the active ones.
    """
    shared = shared_layers(model, adapters)
    if not shared:
        return
    for layer in shared.values():
        _own_weight(layer.get_base_layer())
    separate(model)
    logger.warning(
        "%s shares its weight with another module, which merging the adapter must not change: it has a weight of its "
        "own from now on (tie_word_embeddings=False).",
        ", ".join(shared),
    )


def shared_layers(model: nn.Module, adapters: Sequence[str] | None = None) -> dict[str, Any]:
    """The adapted layers that share their weight with another module, by name; `adapters` as for `untie`."""
    owners = _owners(model)
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, BaseTunerLayer)
        and owners[id(getattr(layer.get_base_layer(), "weight", None))] > 1
        and not set(layer.active_adapters if adapters is None else adapters).isdisjoint(_adapters(layer))
    }


def separate(model: Any) -> None:
    """Where tied modules have come apart, have transformers save and load `model` with nothing tied.

    Others that are still tied get copies: transformers stores what is shared once and ties all or nothing at a load.
    """
    ties = getattr(model, "all_tied_weights_keys", {})
    if all(_parameter(model, name) is _parameter(model, source) for name, source in ties.items()):
        return
    for name in ties:
        owner = _owner(model, name)
        if _owners(model)[id(owner.weight)] > 1:
            _own_weight(owner)
    model.all_tied_weights_keys = {}
    model.config.tie_word_embeddings = False


def _adapters(layer: Any) -> set[str]:
    """Names of the adapters that `layer` holds."""
    return {name for part in layer.adapter_layer_names for name in getattr(layer, part, ())}


def _owners(model: nn.Module) -> Counter[int]:
    """How many modules hold each parameter, by its id."""
    modules = descendants(model)
    return Counter(id(weight) for module in modules for weight in module._parameters.values() if weight is not None)


def _owner(model: nn.Module, name: str) -> Any:
    """The module that holds the parameter of this name, below any adapter."""
    module: Any = model.get_submodule(name.rpartition(".")[0])
    if isinstance(module, AuxiliaryTrainingWrapper):
        return module.original_module
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _parameter(model: nn.Module, name: str) -> Any:
    return getattr(_owner(model, name), name.rpartition(".")[2])


def _own_weight(module: Any) -> None:
    old = module.weight
    module.weight = nn.Parameter(old.detach().clone(), requires_grad=old.requires_grad)

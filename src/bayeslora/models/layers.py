"""The transformer layers of a model: which come first, which hold something random, and how to stand in for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, NamedTuple

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from bayeslora.models.modalities import is_tower


def unwrapped(model: nn.Module) -> Any:
    """`model` without what distributed training wraps around it."""
    inner: Any = model
    while hasattr(inner, "module"):
        inner = inner.module
    return inner


def base_model(model: nn.Module) -> Any:
    """The model under PEFT's and any other wrapper; its layers are the adapted ones, if there are any."""
    inner = unwrapped(model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def text_config(model: nn.Module) -> Any:
    """The config of the part of `model` that reads text: its own, or of a model of several parts (Gemma 3) one inside.

    None for a model without a config.
    """
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def descendants(model: nn.Module) -> Iterator[nn.Module]:
    """`model.modules()` in no particular order, in a fraction of the time: for what every prediction asks."""
    seen: set[int] = set()
    waiting: list[nn.Module | None] = [model]
    while waiting:
        module = waiting.pop()
        if module is not None and id(module) not in seen:
            seen.add(id(module))
            waiting.extend(module._modules.values())
            yield module


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, and each module's own mode back afterwards."""
    training = [module for module in descendants(model) if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def outermost_layers(model: nn.Module) -> list[nn.Module]:
    """The transformer layers of `model` that read text in its order, without layers inside of layers."""
    return [part.module for part in _around_layers(model) if part.is_layer]


def inside_layers(model: nn.Module, chosen: Sequence[int] | None = None) -> set[int]:
    """Ids of the modules inside of the `chosen` layers (`outermost_layers`), themselves included; None: of all."""
    layers = outermost_layers(model)
    if chosen is not None:
        layers = [layers[number] for number in chosen]
    return {id(part) for layer in layers for part in descendants(layer)}


def layers_from_first(model: nn.Module, marked: Sequence[nn.Module]) -> list[nn.Module]:
    """The layers from the first that holds one of `marked` on.

    Empty where a marked module outside the layers comes first, or where the head picks positions of `input_ids` (causal
    and encoder-decoder models with a classification head do): then the layers cannot have more rows than the model's
    input.
    """
    around = list(_around_layers(model))
    if any(_counts_inputs(part.module) for part in around):
        return []
    wanted = set(map(id, marked))
    for place, part in enumerate(around):
        if part.is_layer:
            if any(id(inside) in wanted for inside in descendants(part.module)):
                return [other.module for other in around[place:] if other.is_layer]
        elif id(part.module) in wanted:
            return []
    return []


def tokens_first(model: nn.Module) -> bool:
    """Whether the layers of `model` see `[tokens, batch, hidden]`, as XLNet's do, so that rows cannot be draws."""
    return any(type(module).__name__ == "XLNetModel" for module in descendants(model))


def layers_below(model: nn.Module, layers: Sequence[nn.Module]) -> list[nn.Module]:
    """The layers before the first of `layers`, if all of them hand their output to the next and to nothing else.

    Empty where that is not known: layers of two stacks (encoder and decoder), or keys and values shared between layers.
    """
    if not layers:
        return []
    every = [(id(part.parent), part.module) for part in _around_layers(model) if part.is_layer]
    number = next(number for number, (_, layer) in enumerate(every) if layer is layers[0])
    stacks = {parent for parent, _ in every[: number + 1]}
    one_chain = len(stacks) == 1 and not getattr(text_config(model), "num_kv_shared_layers", 0)
    return [layer for _, layer in every[:number]] if one_chain else []


def run_once(layers: Sequence[nn.Module]) -> AbstractContextManager[None]:
    """Run `layers` in the first forward inside this context; later forwards, of the same input, take their output."""
    kept: list[Any] = []

    def run(layer: nn.Module, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if kept:
            return kept[0]
        output = own(*args, **kwargs)
        if layer is layers[-1]:
            kept.append(output)
        return output

    return forwards_replaced(layers, run)


@contextmanager
def forwards_replaced(layers: Sequence[nn.Module], run: Callable[..., Any]) -> Iterator[None]:
    """`run(layer, own forward, *args, **kwargs)` in place of the forward of each layer."""
    # A forward of the instance, not of its class: accelerate and other wrappers put theirs there.
    before = [layer.__dict__.get("forward") for layer in layers]
    for layer in layers:
        layer.forward = partial(run, layer, layer.forward)
    try:
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            if own is None:
                del layer.forward
            else:
                layer.forward = own


class _Part(NamedTuple):
    module: nn.Module
    parent: nn.Module | None
    is_layer: bool


def _around_layers(
    module: nn.Module, parent: nn.Module | None = None, seen: set[int] | None = None, text: bool = True
) -> Iterator[_Part]:
    """Each module in the order of `modules()`: the layers, but not what is inside of them.

    A tower that text does not reach has no layers in this sense: what is inside of it comes one by one.
    """
    seen = set() if seen is None else seen
    if id(module) in seen:
        return
    seen.add(id(module))
    text = text and not is_tower(module, parent)
    part = _Part(module, parent, text and isinstance(module, GradientCheckpointingLayer))
    yield part
    if not part.is_layer:
        for child in module.children():
            yield from _around_layers(child, module, seen, text)


def _counts_inputs(module: nn.Module) -> bool:
    """Whether this is a model whose head picks a row's last position, or that of its end, by its `input_ids`."""
    heads = ("ForSequenceClassification", "ForTokenClassification")
    reads_ends = bool(getattr(getattr(module, "config", None), "is_encoder_decoder", False))
    return type(module).__name__.endswith(heads) and (hasattr(module, "score") or reads_ends)

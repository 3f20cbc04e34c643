"""The transformer layers of a model: which come first, which hold something random, and how to stand in for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

__all__ = ["forwards_replaced", "layers_below", "layers_from_first", "outermost_layers", "run_once"]


def outermost_layers(model: nn.Module) -> list[nn.Module]:
    """The transformer layers of `model` in its order, without layers inside of layers."""
    layers: list[nn.Module] = []
    covered: set[int] = set()
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer) and id(module) not in covered:
            layers.append(module)
            covered |= {id(child) for child in module.modules()}
    return layers


def layers_from_first(model: nn.Module, marked: Sequence[nn.Module]) -> list[nn.Module]:
    """The layers from the first that holds one of `marked` on.

    Empty where a marked module outside the layers comes first, or where the head picks rows by the size of `input_ids`
    (causal models with a classification head do): then the layers cannot have more rows than the model's input.
    """
    if _head_counts_inputs(model):
        return []
    wanted = set(map(id, marked))
    layers = outermost_layers(model)
    for number, layer in enumerate(layers):
        if wanted & {id(module) for module in layer.modules()}:
            return [] if wanted & _before(model, layer) else layers[number:]
    return []


def layers_below(model: nn.Module, layers: Sequence[nn.Module]) -> list[nn.Module]:
    """The layers before the first of `layers`, if all of them hand their output to the next and to nothing else.

    Empty where that is not known: layers of two stacks (encoder and decoder), or keys and values shared between layers.
    """
    if not layers:
        return []
    every = outermost_layers(model)
    below = every[: next(number for number, layer in enumerate(every) if layer is layers[0])]
    chain = {id(layer) for layer in (*below, layers[0])}
    stacks = {name.rpartition(".")[0] for name, module in model.named_modules() if id(module) in chain}
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return below if len(stacks) == 1 and not getattr(text, "num_kv_shared_layers", 0) else []


@contextmanager
def run_once(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Run `layers` in the first forward inside this context; later forwards, of the same input, take their output."""
    kept: list[Any] = []

    def run(layer: nn.Module, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if kept:
            return kept[0]
        output = own(*args, **kwargs)
        if layer is layers[-1]:
            kept.append(output)
        return output

    with forwards_replaced(layers, run):
        yield


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


def _before(model: nn.Module, layer: nn.Module) -> set[int]:
    """Ids of the modules that come before `layer`."""
    found: set[int] = set()
    for module in model.modules():
        if module is layer:
            break
        found.add(id(module))
    return found


def _head_counts_inputs(model: nn.Module) -> bool:
    return any(
        type(module).__name__.endswith(("ForSequenceClassification", "ForTokenClassification"))
        and hasattr(module, "score")
        for module in model.modules()
    )

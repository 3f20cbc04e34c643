"""The frozen Gaussian factor of a LoRA pair (RAC-LoRA, arXiv 2410.08305)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from bayeslora.adapters.noise import generator
from bayeslora.adapters.random_factor import RandomFactor

_STREAM = 2410_08305
"""Apart from the streams of posterior draws (`bayeslora.sampling`)."""


def draw_sketch(model: PeftModel, side: Literal["A", "B"], seed: int, number: int = 0) -> None:
    """Draw one factor of each pair of the active adapters, freeze it, and start the other at zero.

    Entries are N(0, 1 / columns), so that a unit vector keeps its norm on average; the paper only needs a Gaussian:
    E[B (B^T B)^+ B^T] = (r / out) I does not depend on the scale. Where the factors are random, what is drawn is the
    mean, and the noise around it stays that of the method.

    Args:
        model: With adapters.
        side: Which factor is drawn.
        seed: Of the chain.
        number: Of the sketch.

    Raises:
        ValueError: A factor is no matrix or is not a parameter (embeddings, convolutions, RepLoRA).
    """
    source = generator(torch.device("cpu"), seed, number, _STREAM)
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        for adapter in layer.active_adapters:
            drawn, other = (getattr(layer, f"lora_{one}") for one in (side, "B" if side == "A" else "A"))
            pair = [_checked(container, adapter, name) for container in (drawn, other)]
            shape = (pair[0].out_features, pair[0].in_features)
            _start(pair[0], torch.randn(shape, generator=source) / shape[1] ** 0.5)
            _start(pair[1], torch.zeros(pair[1].out_features, pair[1].in_features))
            _freeze(pair[0])


def _checked(container: nn.ModuleDict, adapter: str, name: str) -> Any:
    factor = container[adapter] if adapter in container else None  # noqa: SIM401
    if isinstance(factor, nn.Linear) or (isinstance(factor, RandomFactor) and factor.location):
        return factor
    raise ValueError(
        f"a sketch takes the place of a LoRA matrix, but {name} has {type(factor).__name__}; adapt linear layers "
        "with a method whose A and B are parameters (Lora, BayesianLora, Blob, ...)."
    )


def _start(factor: Any, weight: Tensor) -> None:
    if isinstance(factor, RandomFactor):
        factor.embed(weight)
    else:
        factor.weight.data.copy_(weight)


def _freeze(factor: Any) -> None:
    names = factor.location if isinstance(factor, RandomFactor) else ("weight",)
    for name in names:
        factor.get_parameter(name).requires_grad_(False)

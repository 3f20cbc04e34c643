"""Which layers of a model were fine-tuned, the spectra of their weights, and forwards with intruders scaled down."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from bayeslora.adapters.draws import random_factors
from bayeslora.adapters.lora_file import adapted_layers, adapter_name, lora_tensors
from bayeslora.adapters.sampling import sampling
from bayeslora.experiments.intruder_dimensions.intruders import (
    THRESHOLD,
    TOP,
    Spectrum,
    left_singular_vectors,
    spectrum,
)
from bayeslora.models.layers import inside_layers
from bayeslora.system.console import track


@dataclass(frozen=True)
class LayerSpectra:
    """A fine-tuned linear layer.

    Attributes:
        name: Its name in the model.
        module: The layer as PEFT wrapped it.
        shape: Of the weight, (out, in).
        base_value: Largest singular value of the weight before.
        update_norm: Frobenius norm of the mean's update.
        mean: Spectrum of the mean, or of the point estimate.
        draws: Number of intruder dimensions in each posterior draw.
    """

    name: str
    module: nn.Module
    shape: tuple[int, int]
    base_value: float
    update_norm: float
    mean: Spectrum
    draws: list[int] = field(default_factory=list)


def layer_spectra(
    model: PeftModel, num_samples: int = 0, seed: int = 0, *, top: int = TOP, threshold: float = THRESHOLD
) -> list[LayerSpectra]:
    """The spectra of all adapted layers; one layer's weights are in memory at a time.

    Args:
        model: With one active LoRA adapter (plain or of this package), or with whole linear layers in
            `modules_to_save` inside of its transformer layers, as full fine-tuning has them.
        num_samples: Posterior draws to count in too; draw s is that of `bayeslora.sampling(model, S, seed)`. Without
            effect where weights are not random.
        seed: Of the draws.
        top: k, the singular vectors to look at.
        threshold: epsilon.

    Raises:
        ValueError: There is no such layer, or the update of a layer is no product of two fixed matrices.
    """
    found = [*_lora_layers(model, num_samples, seed, top, threshold), *_whole_layers(model, top, threshold)]
    if not found:
        raise ValueError("the adapter changes no linear layer of this model, so there is nothing to diagnose.")
    return found


def _lora_layers(model: PeftModel, num_samples: int, seed: int, top: int, threshold: float) -> Iterator[LayerSpectra]:
    layers = adapted_layers(model)
    if not layers:
        return
    draws = num_samples if random_factors(model) else 0
    mean, *drawn = _factors(model, draws, seed)
    for name, layer in track(list(layers.items()), "diagnose", "layers"):
        before = _weight(layer.get_base_layer(), bool(getattr(layer, "fan_in_fan_out", False)))
        left = left_singular_vectors(before)
        update = _update(mean, name, before)
        counts = [spectrum(before + _update(one, name, before), left, top, threshold).count for one in drawn]
        yield _layer(name, layer, before, update, spectrum(before + update, left, top, threshold), counts)


def _factors(model: PeftModel, draws: int, seed: int) -> list[Mapping[str, Tensor]]:
    """A and B of all layers, of the mean and of each draw; they are small."""
    try:
        found: list[Mapping[str, Tensor]] = [lora_tensors(model)]
    except ValueError as error:
        raise ValueError(f"the update of the weights is not fixed matrices A and B: {error}") from error
    for number in range(draws):
        with sampling(model, 1, seed, first=number):
            found.append(lora_tensors(model))
    return found


def _update(factors: Mapping[str, Tensor], name: str, like: Tensor) -> Tensor:
    """B A `[out, in]`."""
    a, b = (factors[f"{name}.lora_{part}.weight"].to(like) for part in "AB")
    return b @ a


def _whole_layers(model: PeftModel, top: int, threshold: float) -> Iterator[LayerSpectra]:
    name = adapter_name(model)
    inside = inside_layers(model)
    for key, module in model.named_modules():
        if not isinstance(module, ModulesToSaveWrapper) or id(module) not in inside:
            continue
        original: Any = module.original_module
        # Of modules with a matrix only linear maps; GPT-2 has its own class for them, transposed.
        transposed = type(original).__name__ == "Conv1D"
        if not (isinstance(original, nn.Linear) or transposed):
            continue
        before = _weight(original, transposed)
        tuned = _weight(module.modules_to_save[name], transposed)
        spectrum_of_it = spectrum(tuned, left_singular_vectors(before), top, threshold)
        yield _layer(key, module, before, tuned - before, spectrum_of_it, [])


def _layer(
    name: str, module: nn.Module, before: Tensor, update: Tensor, mean: Spectrum, draws: list[int]
) -> LayerSpectra:
    shape = (int(before.shape[0]), int(before.shape[1]))
    largest = float(torch.linalg.matrix_norm(before, 2))
    return LayerSpectra(name, module, shape, largest, float(update.norm()), mean, draws)


def _weight(module: nn.Module, transposed: bool) -> Tensor:
    """The weight `[out, in]` in float32, quantised ones unpacked."""
    weight = dequantize_module_weight(module).detach().float()
    return weight.mT if transposed else weight


def short_names(names: Sequence[str]) -> list[str]:
    """Number of the layer and last part of each name, such as "3 query"; the whole name where that is not unique."""
    short = [" ".join([*re.findall(r"\.(\d+)\.", name)[:1], name.rpartition(".")[2]]) for name in names]
    return short if len(set(short)) == len(short) else [name.removeprefix("base_model.model.") for name in names]


@contextmanager
def scaled_intruders(layers: Sequence[LayerSpectra], scale: float) -> Iterator[None]:
    """Forwards inside this context use W_0 + Delta W + (scale - 1) sum u sigma v^T in every layer.

    The sum is over the intruder dimensions of the mean; for posterior draws it is added to every draw. It is added to
    the layer's output, so that the weights stay as they are, quantised ones too, and come back exactly.
    """
    with ExitStack() as stack:
        for layer in layers if scale != 1 else ():
            if layer.mean.count:
                hook = partial(_add, layer.mean.intruders, scale - 1)
                handle = layer.module.register_forward_hook(hook)
                stack.callback(handle.remove)
        yield


def _add(intruders: Spectrum, factor: float, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    value: Tensor = inputs[0]
    left, right = (vectors.to(output) for vectors in (intruders.left * intruders.values, intruders.right))
    return output + factor * (value.to(right.dtype) @ right) @ left.mT

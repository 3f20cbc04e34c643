"""Scaling intruder dimensions down in a model, without changing or copying its weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from bayeslora.experiments.intruder_dimensions.intruders import Spectrum
from bayeslora.experiments.intruder_dimensions.layers import LayerSpectra


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

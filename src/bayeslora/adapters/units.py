"""What a standard deviation of 1 is in a LoRA layer, if it is to mean the same for every base model."""

from __future__ import annotations

import math
from typing import Any

from peft.utils.integrations import dequantize_module_weight
from torch import Tensor

from bayeslora.adapters.config import Side


def layer_units(layer: Any, adapter_name: str) -> dict[Side, float]:
    """Standard deviations of the weights of A and of B that are 1 in units of the layer.

    That of A is its own size, rms(A). The update is scaling * B A, so with rms(B) = rms(W0) / (scaling sqrt(r) rms(A))
    it is as large as the base model's weights: an own scale of W0, a width, rank and alpha change nothing in what a
    noise in these units does to the update, beside W0.

    Raises:
        ValueError: A or the base weight is zero, so that nothing is in proportion to it.
    """
    inner = _rms(layer.lora_A[adapter_name].weight)
    base = _rms(dequantize_module_weight(layer.get_base_layer()))
    if not inner or not base:
        raise ValueError(
            f"expected a base weight and a LoRA factor A that are not zero, got root mean squares of {base:.3g} and "
            f"{inner:.3g}: standard deviations in proportion to the base need both; take std_units='weight', or "
            "another start of A (init_lora_weights)."
        )
    return {"A": inner, "B": base / (layer.scaling[adapter_name] * math.sqrt(layer.r[adapter_name]) * inner)}


def _rms(weight: Tensor) -> float:
    return float(weight.detach().float().square().mean().sqrt())

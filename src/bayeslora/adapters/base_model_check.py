"""What an adapter remembers of its base model, so that it is not put on another one unnoticed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_ARCHITECTURE = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")
_PROBES = 32
_TOLERANCE = 0.1
"""Allowed root mean square difference of the probes, relative to their spread: bf16 rounding moves them by 0.002,
another model by about 1.4."""


def fingerprint(model: nn.Module, target: nn.Module) -> dict[str, Any]:
    """Architecture of `model` and `_PROBES` weights of its first adapted layer `target`.

    `probes` is None where the weights are not ordinary floats (quantised bases, the meta device).
    """
    config = getattr(model, "config", None)
    architecture = {name: getattr(config, name, None) for name in _ARCHITECTURE}
    return {"architecture": architecture, "probes": _probe(target)}


def _probe(target: nn.Module) -> list[float] | None:
    getter: Any = getattr(target, "get_base_layer", lambda: target)
    base = getter()
    weight = getattr(base, "weight", None)
    if not isinstance(weight, torch.Tensor) or not weight.is_floating_point() or weight.is_meta:
        return None
    if hasattr(weight.detach(), "__tensor_flatten__"):
        return None
    flat = weight.detach().flatten()
    index = torch.linspace(0, flat.numel() - 1, _PROBES, dtype=torch.float64).long()
    return [round(value, 8) for value in flat[index.to(flat.device)].float().tolist()]


def check_fingerprint(
    expected: dict[str, Any] | None, model: nn.Module, target: nn.Module, trained_on: str | None
) -> None:
    """Compare `model` with the fingerprint of the model an adapter was trained on.

    Raises:
        ValueError: Another architecture, or the same architecture with other weights.
    """
    if expected is None:
        return
    found = fingerprint(model, target)
    remedy = f"Load the adapter on the base model it was trained on ({trained_on or 'its name was not saved'})."
    for name, value in expected["architecture"].items():
        if found["architecture"].get(name) != value:
            raise ValueError(
                f"This adapter belongs to another base model: {name} should be {value}, got "
                f"{found['architecture'].get(name)}. {remedy}"
            )
    if expected["probes"] is None or found["probes"] is None:
        return
    reference, value = torch.tensor(expected["probes"]), torch.tensor(found["probes"])
    difference = (value - reference).square().mean().sqrt() / reference.std().clamp_min(1e-12)
    if difference > _TOLERANCE:
        raise ValueError(
            f"This adapter belongs to another base model: the weights of its first adapted layer differ by "
            f"{difference:.2f} of their standard deviation. {remedy}"
        )

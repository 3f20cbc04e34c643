"""A diagnosis as a short text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bayeslora.experiments.intruder_dimensions.layers import short_names

_SHOWN = 20


def found_any(record: Mapping[str, Any]) -> bool:
    """Whether a diagnosis found intruder dimensions, in the mean or in any draw."""
    return bool(record["intruders"] or any((record["intruders_of_draws"] or {}).get("draws", [])))


def diagnosis_text(record: Mapping[str, Any]) -> str:
    """The layers with intruder dimensions, the sum, and the effect of scaling them down, as lines for a terminal."""
    layers, draws = record["layers"], record["intruders_of_draws"]
    if not found_any(record):
        counted = "mean" if draws is None else f"mean and {len(draws['draws'])} draws"
        where = f"cosine below {record['threshold']:g} among the top {record['top']}"
        return f"no intruder dimensions in {len(layers)} layers, {counted} ({where}): nothing to repair"
    total = f"{record['intruders']} intruder dimensions in {len(layers)} layers"
    total += f" (cosine below {record['threshold']:g} among the top {record['top']})"
    if draws is not None:
        total += f" in the mean; {draws['mean']:.1f} ± {draws['std']:.1f} in a draw, over {len(draws['draws'])} draws"
    lines = [total, *_layer_lines(layers)]
    if not record["intruders"]:
        lines.append("the mean has nothing to repair; a draw's are the posterior's noise")
    for repair in record["repair"]:
        title = f"{repair['task']} ({repair['split']}, {repair['items']} items)"
        lines += ["", f"scaling them by lambda, on {title}:", "  lambda  accuracy    nll    ece"]
        lines += [
            f"  {point['lambda']:6g}  {point['accuracy']:8.3f}  {point['nll']:5.3f}  {point['ece']:5.3f}"
            for point in repair["points"]
        ]
    return "\n".join(lines)


def next_step(record: Mapping[str, Any]) -> str:
    """What to do after a diagnosis that found intruder dimensions in the mean; of several tasks the first decides."""
    if not record["repair"]:
        return "--tasks '[NAME, ...]' measures what scaling them down does there"
    points = record["repair"][0]["points"]
    best = min(points, key=lambda point: point["nll"])["lambda"]
    if best >= 1 or len(points) == 1:
        return "keep the adapter: no other lambda has a lower NLL; --tasks '[NAME, ...]' measures other tasks"
    writer = "peft.tuners.lora.intruders.reduce_intruder_dimension"
    return f"lambda {best:g} has the lowest NLL here; {writer} writes such an adapter (docs/guides/diagnose.md)"


def _layer_lines(layers: list[dict[str, Any]]) -> list[str]:
    names = short_names([layer["name"] for layer in layers])
    found = [(name, layer) for name, layer in zip(names, layers, strict=True) if layer["intruders"]]
    if not found:
        return []
    width = max(len("layer"), *(len(name) for name, _ in found[:_SHOWN]))
    lines = [f"  {'layer':{width}}  count  their singular values (largest of the base)"]
    for name, layer in found[:_SHOWN]:
        values = " ".join(f"{layer['singular_values'][rank]:.2f}" for rank in layer["intruders"])
        largest = layer["largest_base_singular_value"]
        lines.append(f"  {name:{width}}  {len(layer['intruders']):5d}  {values} ({largest:.2f})")
    if len(found) > _SHOWN:
        lines.append(f"  and {len(found) - _SHOWN} more layers in diagnosis.json")
    return lines

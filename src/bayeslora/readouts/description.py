"""What the evidence has chosen of a head, in words and for metrics.json."""

from __future__ import annotations

from typing import Any

from bayeslora.readouts.head import Head
from bayeslora.system.console import text_table


def describe_head(head: Head) -> dict[str, Any]:
    """What was chosen on the training items, for metrics.json: weights and effective parameters by block, the noise,
    the temperature, the share of labels that look wrong, log evidence and leave-one-out NLL (nats)."""
    names = list(head.scaling.scales)
    return {
        "weights": dict(zip(names, head.scales.weights.tolist(), strict=True)),
        "effective_parameters": dict(zip(names, head.scales.effective_parameters.tolist(), strict=True)),
        "noise_variance": head.scales.noise,
        "temperature": head.noise.temperature,
        "wrong_labels": head.noise.share,
        "log_evidence": head.scales.log_evidence,
        "leave_one_out_nll": head.noise.nll,
    }


def summary(chosen: dict[str, Any]) -> str:
    """`describe_head` as a table of the blocks, and a line."""
    effective = chosen["effective_parameters"]
    blocks = [[name, f"{weight:.2g}", f"{effective[name]:.0f}"] for name, weight in chosen["weights"].items()]
    wrong = f", {chosen['wrong_labels']:.1%} of the labels look wrong" if chosen["wrong_labels"] else ""
    return (
        f"{text_table(['features', 'prior variance', 'effective parameters'], blocks)}\n"
        f"leave-one-out NLL {chosen['leave_one_out_nll']:.3f} nats at temperature {chosen['temperature']:.2f}; noise "
        f"variance {chosen['noise_variance']:.3g}{wrong}"
    )

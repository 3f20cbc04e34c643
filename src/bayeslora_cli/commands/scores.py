"""The scores of a run: as a table, and the most important ones as a record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_COUNTS = {"num_examples": "items", "num_tokens": "tokens", "num_samples": "draws"}
_SCORES = ("accuracy", "nll", "perplexity", "joint_perplexity", "bits_per_byte", "ece", "brier", "auroc")


def main_scores(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What --json prints of metrics.json."""
    names = ("method", "task", "split", *_SCORES[:-1], *_COUNTS, "temperature")
    return {name: metrics[name] for name in names if name in metrics}


def scores_table(metrics: Mapping[str, Any]) -> str:
    """A row for the split of `metrics`, one for dev and one for dev by the mean alone where they hold those scores too,
    and their temperature.
    """
    from bayeslora.system.console import text_table

    rows = {str(metrics["split"]): metrics}
    rows |= {said: metrics[name] for name, said in (("dev", "dev"), ("one_pass", "dev, one pass")) if name in metrics}
    counts = [name for name in _COUNTS if name in metrics]
    scores = [name for name in _SCORES if name in metrics]
    heads = ["split", *(_COUNTS[name] for name in counts), *scores]
    cells = [
        [
            split,
            *(f"{round(values[name], 2):,}" if name in values else "" for name in counts),
            *(f"{values[name]:.3f}" if values.get(name) is not None else "" for name in scores),
        ]
        for split, values in rows.items()
    ]
    return text_table(heads, cells) + _temperature(metrics)


def one_pass_said(metrics: Mapping[str, Any]) -> str:
    """What to do where the mean alone has no worse NLL on dev than the draws; else empty."""
    mean = metrics.get("one_pass")
    if mean is None or mean["nll"] > metrics["nll"]:
        return ""
    return "advice   --num_samples 0: one pass has no worse NLL here than the draws, and takes a fraction of their time"


def guess_said(nll: float, guess: float) -> str:
    """What to do where a run's NLL on dev is no lower than that of a guess (nats); else empty."""
    if nll < guess:
        return ""
    return (
        f"advice   NLL {nll:.3f} on dev is no better than a guess ({guess:.3f}): train longer (--train.epochs), find a "
        "rate by `bayeslora sweep`, or fit a temperature (--temperature_scaling true)"
    )


def _temperature(metrics: Mapping[str, Any]) -> str:
    value, error = metrics.get("temperature"), metrics.get("temperature_standard_error")
    if value is None:
        return ""
    return f"\ntemperature {value:.3g}" + (f" ± {error:.2g}" if error is not None else "")

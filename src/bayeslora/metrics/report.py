"""The metrics that every report shows."""

from __future__ import annotations

import math
from typing import Any

from bayeslora.metrics.base import Metric
from bayeslora.metrics.inputs import Array
from bayeslora.metrics.sample import Sample
from bayeslora.options.registry import Registry

METRICS: Registry[Metric] = Registry(Metric, "bayeslora.metrics")  # type: ignore[type-abstract]
"""By name, as `metrics.json` has it."""


def all_metrics() -> list[Metric]:
    """All metrics of labelled predictions, in the order of a table's columns."""
    return sorted((metric() for metric in METRICS.classes()), key=lambda metric: metric.place)


def summary(probabilities: Array, labels: Array) -> dict[str, Any]:
    """The metrics a report shows, as plain numbers that JSON can hold.

    >>> import torch
    >>> scores = summary(torch.tensor([[0.9, 0.1], [0.4, 0.6]]), torch.tensor([0, 0]))
    >>> scores["accuracy"], round(scores["nll"], 3), scores["num_examples"]
    (0.5, 0.511, 2)

    Returns:
        accuracy, nll (nats), ece (15 bins), brier, num_examples, adaptive_ece and mce (15 bins), auroc (of
        correctness), aurc, accuracy_at_80 (on the most confident 80 %), and metrics of your own. Each is a number but
        auroc, which is None, not NaN, where all predictions are right or all are wrong.
    """
    sample = Sample(probabilities, labels)
    found = {metric.name: float(metric.of(sample)[0]) for metric in all_metrics()}
    values = {name: None if math.isnan(value) else value for name, value in found.items()}
    first = {name: values.pop(name) for name in ("accuracy", "nll", "ece", "brier")}
    return {**first, "num_examples": len(labels), **values}

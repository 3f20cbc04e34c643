"""The metrics that every report shows."""

import math
from typing import Any

from bayeslora.metrics.calibration import (
    adaptive_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
)
from bayeslora.metrics.inputs import Array
from bayeslora.metrics.scores import accuracy, brier, nll
from bayeslora.metrics.selective import aurc, correctness_auroc, selective_accuracy


def summary(probabilities: Array, labels: Array) -> dict[str, Any]:
    """The metrics a report shows, as plain numbers that JSON can hold.

    >>> import torch
    >>> scores = summary(torch.tensor([[0.9, 0.1], [0.4, 0.6]]), torch.tensor([0, 0]))
    >>> scores["accuracy"], round(scores["nll"], 3), scores["num_examples"]
    (0.5, 0.511, 2)

    Returns:
        accuracy, nll (nats), ece (15 bins), brier, num_examples, adaptive_ece and mce (15 bins), auroc (of
        correctness), aurc, accuracy_at_80 (on the most confident 80 %). Each is a number but auroc, which is None, not
        NaN, where all predictions are right or all are wrong.
    """
    auroc = correctness_auroc(probabilities, labels)
    return {
        "accuracy": accuracy(probabilities, labels),
        "nll": nll(probabilities, labels),
        "ece": expected_calibration_error(probabilities, labels),
        "brier": brier(probabilities, labels),
        "num_examples": len(labels),
        "adaptive_ece": adaptive_calibration_error(probabilities, labels),
        "mce": maximum_calibration_error(probabilities, labels),
        "auroc": None if math.isnan(auroc) else auroc,
        "aurc": aurc(probabilities, labels),
        "accuracy_at_80": selective_accuracy(probabilities, labels, coverage=0.8),
    }

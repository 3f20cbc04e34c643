"""How good answers are: probabilities of questions with different numbers of options, and the right options."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bayeslora.metrics.calibration import ece_floor, expected_calibration_error
from bayeslora.metrics.scores import accuracy, nll
from bayeslora.metrics.selective import aurc

RISK = 0.05


def scores(answers: Sequence[Sequence[float]], labels: Sequence[int]) -> dict[str, float]:
    """Accuracy, NLL (nats), ECE and its floor, AURC by the top probability, and coverage at a risk of 5 %."""
    widest = max(map(len, answers))
    table = torch.tensor([[*row, *[0.0] * (widest - len(row))] for row in answers], dtype=torch.float64)
    table, right = table / table.sum(1, keepdim=True), torch.tensor(labels)
    return {
        "accuracy": accuracy(table, right),
        "nll": nll(table, right),
        "ece": expected_calibration_error(table, right),
        "ece_floor": ece_floor(table),
        "aurc": aurc(table, right),
        "coverage_at_5": coverage_at(table, right, RISK),
    }


def coverage_at(table: torch.Tensor, labels: torch.Tensor, risk: float) -> float:
    """The largest share of answers at or above a threshold of the top probability of which at most `risk` are wrong."""
    top, best = table.max(1)
    kept = [top >= threshold for threshold in top.unique()]
    fine = [float(mask.double().mean()) for mask in kept if float((best != labels)[mask].double().mean()) <= risk]
    return max(fine, default=0.0)

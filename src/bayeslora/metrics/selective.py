"""Does confidence tell right predictions from wrong ones, so that the doubtful ones can be left to someone else?

All of these rank items by the confidence of their top choice, or by other `values` in the direction of their `measure`:
`aurc(probabilities, labels, mutual_information, MUTUAL_INFORMATION)`.
"""

import math
from dataclasses import dataclass

import torch
from sklearn.metrics import roc_auc_score

from bayeslora.metrics.direction import CONFIDENCE, Measure
from bayeslora.metrics.inputs import Array, checked, share_of, top_choice
from bayeslora.metrics.uncertainty import checked_values


@dataclass(frozen=True)
class RiskCoverageCurve:
    """What is got wrong when only the most confident items are answered.

    Attributes:
        coverage: Share of items answered `[items]`: 1 / items, 2 / items, ..., 1.
        risk: Share of the answered items whose top choice is wrong `[items]`.
    """

    coverage: torch.Tensor
    risk: torch.Tensor


def correctness_auroc(
    probabilities: Array, labels: Array, values: Array | None = None, measure: Measure = CONFIDENCE
) -> float:
    """Area under the ROC curve of the top choice's confidence for "the top choice is right"; in [0, 1].

    It is the probability that a right prediction is more confident than a wrong one, where equal confidence counts
    half. NaN where all predictions are right or all are wrong.

    >>> correctness_auroc(torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([0, 1]))
    1.0

    Source: Hendrycks and Gimpel (arXiv:1610.02136), section 2.
    """
    doubt, correct = _ranked(probabilities, labels, values, measure)
    if correct.all() or not correct.any():
        return math.nan
    return float(roc_auc_score(correct.numpy(), -doubt.numpy()))


def risk_coverage_curve(
    probabilities: Array, labels: Array, values: Array | None = None, measure: Measure = CONFIDENCE
) -> RiskCoverageCurve:
    """Error rate among the k most confident items, for k = 1 to all.

    Where the k-th place falls among items of equal confidence, the risk is its mean over the orders they could stand
    in, so the order of the items never matters. A threshold never parts such items: at the last of them, the risk is
    that of all items on the sure side of their common value.

    Source: Geifman and El-Yaniv (arXiv:1705.08500).
    """
    doubt, correct = _ranked(probabilities, labels, values, measure)
    _, group, size = doubt.unique(return_inverse=True, return_counts=True)
    error_rate = torch.bincount(group, weights=(~correct).double()) / size
    answered = torch.arange(1, len(doubt) + 1, dtype=torch.float64)
    errors = error_rate[group.sort().values].cumsum(dim=0)
    return RiskCoverageCurve(coverage=answered / len(doubt), risk=errors / answered)


def aurc(probabilities: Array, labels: Array, values: Array | None = None, measure: Measure = CONFIDENCE) -> float:
    """Area under the risk-coverage curve: its risk averaged over all coverages; in [0, 1], lower is better.

    Source: Geifman et al. (arXiv:1805.08206).
    """
    return risk_coverage_curve(probabilities, labels, values, measure).risk.mean().item()


def selective_accuracy(
    probabilities: Array,
    labels: Array,
    coverage: float = 0.8,
    values: Array | None = None,
    measure: Measure = CONFIDENCE,
) -> float:
    """Accuracy on the most confident items: the fewest that are at least a share `coverage` of all.

    >>> selective_accuracy(torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([0, 1]), coverage=0.5)
    1.0

    Raises:
        ValueError: `coverage` is not in (0, 1].
    """
    if not 0 < coverage <= 1:
        raise ValueError(f"Expected a coverage above 0 and at most 1, but got {coverage}. Pass a share, such as 0.8.")
    risk = risk_coverage_curve(probabilities, labels, values, measure).risk
    return 1 - risk[share_of(len(risk), coverage) - 1].item()


def _ranked(
    probabilities: Array, labels: Array, values: Array | None, measure: Measure
) -> tuple[torch.Tensor, torch.Tensor]:
    """How doubtful each item is `[items]`, larger for the more doubtful, and whether its top choice is right."""
    confidence, correct = top_choice(*checked(probabilities, labels))
    if values is None:
        if measure != CONFIDENCE:
            raise ValueError(f"Expected values of the {measure.name} of each item, but got none. Pass values=.")
        return CONFIDENCE.doubt(confidence), correct
    found = checked_values("values", values)
    if len(found) != len(correct):
        raise ValueError(f"Expected a value for each of the {len(correct)} items, but got {len(found)}.")
    return measure.doubt(found), correct

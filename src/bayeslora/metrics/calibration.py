"""Does the confidence of the top choice match how often it is right?"""

from dataclasses import dataclass

import torch
from torchmetrics.functional.classification import binary_calibration_error

from bayeslora.metrics.inputs import Array, checked, checked_confidence, top_choice


@dataclass(frozen=True)
class ReliabilityCurve:
    """Items grouped by the confidence of their top choice.

    Attributes:
        confidence: Mean confidence of each bin's items `[bins]`; NaN in a bin without items.
        accuracy: Share of each bin's items whose top choice is right `[bins]`; NaN in a bin without items.
        count: Number of items `[bins]`.
    """

    confidence: torch.Tensor
    accuracy: torch.Tensor
    count: torch.Tensor


def expected_calibration_error(probabilities: Array, labels: Array, bins: int = 15) -> float:
    """Top-label calibration error over bins of equal width, weighted by their items; in [0, 1].

    Also of two choices: the confidence is that of the top choice, not of column 1 (as netcal has it for two).

    Four answers with a confidence of 0.9 of which three are right are overconfident by 0.15:

    >>> probabilities = torch.tensor([[0.9, 0.1]] * 4)
    >>> round(expected_calibration_error(probabilities, torch.tensor([0, 0, 0, 1])), 3)
    0.15

    Source: Guo et al. (arXiv:1706.04599), equation 3.
    """
    return confidence_calibration_error(*top_choice(*checked(probabilities, labels)), bins)


def confidence_calibration_error(confidence: Array, correct: Array, bins: int = 15) -> float:
    """`expected_calibration_error` of predictions that are known by their confidence and whether they are right.

    Args:
        confidence: Probability of each top choice `[items]`.
        correct: Whether it is right `[items]`, bool.
        bins: Number of bins between 0 and 1.

    Raises:
        ValueError: A confidence is NaN or outside of [0, 1], or there are not as many of both.
    """
    confidence, correct = checked_confidence(confidence, correct)
    return binary_calibration_error(_below_one(confidence), correct.long(), n_bins=bins, norm="l1").item()


def maximum_calibration_error(probabilities: Array, labels: Array, bins: int = 15) -> float:
    """Largest gap between accuracy and confidence in any of `bins` bins of equal width; in [0, 1].

    Source: Guo et al. (arXiv:1706.04599), equation 5.
    """
    confidence, correct = _top_choice(probabilities, labels)
    return binary_calibration_error(confidence, correct.long(), n_bins=bins, norm="max").item()


def adaptive_calibration_error(probabilities: Array, labels: Array, bins: int = 15) -> float:
    """Top-label calibration error over bins of equal mass, weighted by their items; in [0, 1].

    Items of equal confidence share a bin, so the order of the items never matters; bins are then less equal.

    Source: Mukhoti et al. (arXiv:2002.09437), after Nixon et al. (arXiv:1904.01685).
    """
    confidence, correct = _top_choice(probabilities, labels)
    inner_edges = torch.quantile(confidence, _equal_steps(bins)[1:-1])
    curve = _grouped(confidence, correct, torch.bucketize(confidence, inner_edges, right=True), bins)
    gap = (curve.accuracy - curve.confidence).abs() * curve.count
    return (gap.nansum() / len(confidence)).item()


def reliability_curve(probabilities: Array, labels: Array, bins: int = 15) -> ReliabilityCurve:
    """Confidence, accuracy and count in the bins of equal width that `expected_calibration_error` uses.

    Bin i holds the confidences in [i / bins, (i + 1) / bins); the last one holds 1 too.

    >>> curve = reliability_curve(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]]), torch.tensor([0, 1, 1]), bins=2)
    >>> curve.count.tolist(), curve.accuracy.tolist()
    ([0, 3], [nan, 0.6666666666666666])
    """
    return confidence_reliability_curve(*top_choice(*checked(probabilities, labels)), bins)


def confidence_reliability_curve(confidence: Array, correct: Array, bins: int = 15) -> ReliabilityCurve:
    """`reliability_curve` of predictions that are known by their confidence and whether they are right `[items]`.

    Raises:
        ValueError: A confidence is NaN or outside of [0, 1], or there are not as many of both.
    """
    confidence, correct = checked_confidence(confidence, correct)
    confidence = _below_one(confidence)
    index = torch.bucketize(confidence, _equal_steps(bins), right=True) - 1
    return _grouped(confidence, correct, index, bins)


def _top_choice(probabilities: Array, labels: Array) -> tuple[torch.Tensor, torch.Tensor]:
    """Confidence of the top choice `[items]`, kept below one, and whether it is right `[items]`."""
    confidence, correct = top_choice(*checked(probabilities, labels))
    return _below_one(confidence), correct


def _below_one(confidence: torch.Tensor) -> torch.Tensor:
    # torchmetrics' bins are open above, with one bin more for exactly 1, and anything past 1 it takes for a
    # logit. Saturated confidences belong into the last bin, as in the definition.
    confidence = confidence.double()
    return confidence.clamp_max(1 - torch.finfo(confidence.dtype).eps / 2)


def _equal_steps(bins: int) -> torch.Tensor:
    """Edges `[bins + 1]` from zero to one."""
    if bins < 1:
        raise ValueError(f"Expected at least one bin, but got bins={bins}.")
    return torch.linspace(0, 1, bins + 1, dtype=torch.float64)


def _grouped(confidence: torch.Tensor, correct: torch.Tensor, index: torch.Tensor, bins: int) -> ReliabilityCurve:
    """Average the items `[items]` of each bin; `index [items]` names each item's bin."""
    count = torch.bincount(index, minlength=bins)
    return ReliabilityCurve(
        confidence=torch.bincount(index, weights=confidence, minlength=bins) / count,
        accuracy=torch.bincount(index, weights=correct.double(), minlength=bins) / count,
        count=count,
    )

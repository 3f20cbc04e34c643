"""Accuracy, likelihood and calibration of predicted probabilities.

Every function takes `probabilities [items, choices]`, a torch tensor or numpy array whose rows sum to one (a
choice an item does not have carries probability zero), and integer `labels [items]`. All of them raise
`ValueError` when the two do not fit together, when a row is no distribution, or when a label is out of range;
`TypeError` when the labels are not integers. The work is done in float64 on the CPU.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy
import torch
from torch.nn import functional
from torchmetrics.functional.classification import binary_calibration_error

Array: TypeAlias = torch.Tensor | numpy.ndarray

# The smallest probability `nll` takes at its word: the smallest normal float32, 1.2e-38, or 87.3 nats.
SMALLEST_PROBABILITY = torch.finfo(torch.float32).tiny

# Half-precision softmax rows miss one by about a hundredth; they must be computed in float32.
_ROW_SUM_TOLERANCE = 1e-3


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


def accuracy(probabilities: Array, labels: Array) -> float:
    """Share of items whose most probable choice is the label; the first of equal choices counts."""
    _, correct = _top_choice(*_checked(probabilities, labels))
    return correct.double().mean().item()


def nll(probabilities: Array, labels: Array) -> float:
    """Mean negative log-likelihood of the labels in nats.

    A label's probability is raised to at least `SMALLEST_PROBABILITY`, so one item costs at most 87.3 nats
    and the mean stays finite.
    """
    probabilities, labels = _checked(probabilities, labels)
    return functional.nll_loss(probabilities.clamp_min(SMALLEST_PROBABILITY).log(), labels).item()


def brier(probabilities: Array, labels: Array) -> float:
    """Multi-class Brier score in [0, 2]: squared error summed over choices, averaged over items.

    Source: Brier (1950), Verification of forecasts expressed in terms of probability.
    """
    probabilities, labels = _checked(probabilities, labels)
    target = functional.one_hot(labels, probabilities.shape[1])
    return (probabilities - target).square().sum(dim=1).mean().item()


def expected_calibration_error(probabilities: Array, labels: Array, bins: int = 15) -> float:
    """Top-label calibration error over bins of equal width, weighted by their items; in [0, 1].

    Source: Guo et al. (arXiv:1706.04599), equation 3.
    """
    confidence, correct = _top_choice(*_checked(probabilities, labels))
    return binary_calibration_error(confidence, correct.long(), n_bins=bins, norm="l1").item()


def maximum_calibration_error(probabilities: Array, labels: Array, bins: int = 15) -> float:
    """Largest gap between accuracy and confidence in any of `bins` bins of equal width; in [0, 1].

    Source: Guo et al. (arXiv:1706.04599), equation 5.
    """
    confidence, correct = _top_choice(*_checked(probabilities, labels))
    return binary_calibration_error(confidence, correct.long(), n_bins=bins, norm="max").item()


def adaptive_calibration_error(probabilities: Array, labels: Array, bins: int = 15) -> float:
    """Top-label calibration error over bins of equal mass, weighted by their items; in [0, 1].

    Items of equal confidence share a bin, so the order of the items never matters; bins are then less equal.

    Source: Mukhoti et al. (arXiv:2002.09437), after Nixon et al. (arXiv:1904.01685).
    """
    confidence, correct = _top_choice(*_checked(probabilities, labels))
    inner_edges = torch.quantile(confidence, _equal_steps(bins)[1:-1])
    curve = _grouped(confidence, correct, torch.bucketize(confidence, inner_edges, right=True), bins)
    gap = (curve.accuracy - curve.confidence).abs() * curve.count
    return (gap.nansum() / len(confidence)).item()


def reliability_curve(probabilities: Array, labels: Array, bins: int = 15) -> ReliabilityCurve:
    """Confidence, accuracy and count in the bins of equal width that `expected_calibration_error` uses.

    Bin i holds the confidences in [i / bins, (i + 1) / bins); the last one holds 1 too.
    """
    confidence, correct = _top_choice(*_checked(probabilities, labels))
    index = torch.bucketize(confidence, _equal_steps(bins), right=True) - 1
    return _grouped(confidence, correct, index, bins)


def summary(probabilities: Array, labels: Array) -> dict[str, float]:
    """The metrics a report shows: accuracy, nll (nats), ece (15 bins), brier, and num_examples."""
    return {
        "accuracy": accuracy(probabilities, labels),
        "nll": nll(probabilities, labels),
        "ece": expected_calibration_error(probabilities, labels),
        "brier": brier(probabilities, labels),
        "num_examples": len(labels),
    }


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


def _top_choice(probabilities: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Confidence of the top choice `[items]`, and whether it is right `[items]`."""
    confidence, prediction = probabilities.max(dim=1)
    # torchmetrics' bins are open above, with one bin more for exactly 1, and anything past 1 it takes for a
    # logit. Saturated confidences belong into the last bin, as in the definition.
    largest_below_one = 1 - torch.finfo(confidence.dtype).eps / 2
    return confidence.clamp_max(largest_below_one), prediction == labels


def _checked(probabilities: Array, labels: Array) -> tuple[torch.Tensor, torch.Tensor]:
    """Both arguments as CPU tensors in float64 and int64, or an error that says what is wrong."""
    probabilities = torch.as_tensor(probabilities).detach().cpu().double()
    labels = torch.as_tensor(labels).detach().cpu()
    _check_shapes(probabilities, labels)
    _check_distributions(probabilities)
    _check_labels(labels, choices=probabilities.shape[1])
    return probabilities, labels.long()


def _check_shapes(probabilities: torch.Tensor, labels: torch.Tensor) -> None:
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or probabilities.numel() == 0:
        raise ValueError(
            "Expected probabilities [items, choices] and labels [items] with at least one item, but got "
            f"shapes {list(probabilities.shape)} and {list(labels.shape)}. Pass a row and a label per item."
        )


def _check_distributions(probabilities: torch.Tensor) -> None:
    if not probabilities.isfinite().all():
        row = int((~probabilities.isfinite()).any(dim=1).nonzero()[0])
        raise ValueError(
            f"Expected finite probabilities, but row {row} is {probabilities[row].tolist()}. "
            "Look for overflow in the model; float16 overflows at 65504."
        )
    sums = probabilities.sum(dim=1)
    wrong = (probabilities < 0).any(dim=1) | ((sums - 1).abs() > _ROW_SUM_TOLERANCE)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"Expected rows of non-negative numbers that sum to one, but row {row} is "
            f"{probabilities[row].tolist()} with sum {sums[row].item():.6g}. "
            "Pass probabilities, not logits or log-probabilities, and compute the softmax in float32."
        )


def _check_labels(labels: torch.Tensor, *, choices: int) -> None:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"Expected integer labels, but got {labels.dtype}. Pass each item's choice index.")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= choices:
        raise ValueError(
            f"Expected labels in 0 to {choices - 1}, but they run from {low} to {high}. "
            "Drop items without a label, or give each label its column of probabilities."
        )

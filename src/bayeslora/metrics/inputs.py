"""What metrics are computed from: probabilities and labels, checked."""

import math
from fractions import Fraction
from typing import TypeAlias

import numpy
import torch

Array: TypeAlias = torch.Tensor | numpy.ndarray

# Half-precision softmax rows miss one by about a hundredth; they must be computed in float32.
_ROW_SUM_TOLERANCE = 1e-3
_ROUNDING = 1e-9


def checked(probabilities: Array, labels: Array) -> tuple[torch.Tensor, torch.Tensor]:
    """Both arguments as CPU tensors in float64 and int64, or an error that says what is wrong."""
    probabilities, labels = torch.as_tensor(probabilities).detach().cpu(), torch.as_tensor(labels).detach().cpu()
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or probabilities.numel() == 0:
        raise ValueError(
            "Expected probabilities [items, choices] and labels [items] with at least one item, but got "
            f"shapes {list(probabilities.shape)} and {list(labels.shape)}. Pass a row and a label per item."
        )
    return checked_probabilities(probabilities), checked_labels(labels, choices=probabilities.shape[1])


def checked_probabilities(probabilities: Array) -> torch.Tensor:
    """Probabilities `[items, choices]` as a CPU tensor in float64, or an error that says what is wrong."""
    probabilities = torch.as_tensor(probabilities).detach().cpu().double()
    if probabilities.ndim != 2 or probabilities.numel() == 0:
        raise ValueError(
            f"Expected probabilities [items, choices] with at least one item, but got shape "
            f"{list(probabilities.shape)}. Pass a row per item."
        )
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
    return probabilities


def checked_labels(labels: Array, *, choices: int) -> torch.Tensor:
    """Labels `[items]` as a CPU tensor in int64, or an error that says what is wrong."""
    labels = torch.as_tensor(labels).detach().cpu()
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"Expected integer labels, but got {labels.dtype}. Pass each item's choice index.")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= choices:
        raise ValueError(
            f"Expected labels in 0 to {choices - 1}, but they run from {low} to {high}. "
            "Drop items without a label, or give each label its column of probabilities."
        )
    return labels.long()


def checked_confidence(confidence: Array, correct: Array) -> tuple[torch.Tensor, torch.Tensor]:
    """Confidences `[items]` in float64, in [0, 1], and whether they are right `[items]`, bool; on the CPU.

    Raises:
        ValueError: A confidence is NaN or outside of [0, 1], the two do not fit together, or there is no item.
        TypeError: `correct` is neither bool nor made of 0 and 1.
    """
    confidence, correct = torch.as_tensor(confidence).detach().cpu(), torch.as_tensor(correct).detach().cpu()
    if confidence.ndim != 1 or correct.shape != confidence.shape or len(confidence) == 0:
        raise ValueError(
            "Expected confidence [items] and correct [items] with at least one item, but got shapes "
            f"{list(confidence.shape)} and {list(correct.shape)}. Pass both for each item."
        )
    if correct.dtype != torch.bool and not ((correct == 0) | (correct == 1)).all():
        raise TypeError(
            f"Expected correct to be true or false, but got {correct.dtype} with other values than 0 and 1."
        )
    confidence = confidence.double()
    # Rounding takes a probability a little past one at times. NaN fails every comparison.
    fitting = (confidence >= 0) & (confidence <= 1 + _ROW_SUM_TOLERANCE)
    if not fitting.all():
        item = int((~fitting).nonzero()[0])
        raise ValueError(
            f"Expected confidences in [0, 1], but item {item} has {confidence[item].item():.6g}. "
            "Pass the probability of each top choice, not a logit, a log-probability or an uncertainty."
        )
    return confidence.clamp_max(1), correct.bool()


def top_choice(probabilities: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Confidence of the top choice `[items]`, and whether it is right `[items]`; the first of equal choices counts."""
    confidence, prediction = probabilities.max(dim=1)
    # Rounding takes a certain row past one at times; it is not more certain than the others.
    return confidence.clamp_max(1), prediction == labels


def share_of(count: int, share: float) -> int:
    """The smallest whole number that is at least `share` of `count`.

    The share is taken as the decimal it is written as: in binary, 0.55 of 100 is a little more than 55. The decimals of
    17 / 19 end a little above it, and still are 17 of 19.
    """
    exact = Fraction(str(share)) * count
    return round(exact) if abs(exact - round(exact)) < _ROUNDING else math.ceil(exact)


def checked_values(name: str, scores: Array) -> torch.Tensor:
    """Finite uncertainties `[items]`, float64 on the CPU, or an error that says what is wrong."""
    values = torch.as_tensor(scores).detach().cpu().double()
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(
            f"Expected {name} [items] with at least one item, but got shape {list(values.shape)}. "
            "Pass one uncertainty per item."
        )
    if not values.isfinite().all():
        item = int((~values.isfinite()).nonzero()[0])
        raise ValueError(
            f"Expected finite uncertainties, but {name}[{item}] is {values[item].item()}. Look for the item's "
            "prediction."
        )
    return values

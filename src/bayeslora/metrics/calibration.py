"""Does the confidence of the top choice match how often it is right?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy
import torch

from bayeslora.metrics.base import Metric
from bayeslora.metrics.inputs import Array, checked_confidence, checked_probabilities
from bayeslora.metrics.sample import Levels, Sample, below_one


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


class CalibrationError(Metric):
    """A gap between accuracy and confidence in [0, 1], from bins of the confidence."""

    def of(self, sample: Sample, bins: int = 15) -> numpy.ndarray:
        """The metric of each resample."""
        return self.of_levels(sample.confidence, bins)

    def of_levels(self, levels: Levels, bins: int) -> numpy.ndarray:
        """The metric of each resample, of items known by their confidence and whether they are right."""
        raise NotImplementedError

    def __call__(self, probabilities: Array, labels: Array, bins: int = 15) -> float:
        """The metric of the items as they are."""
        return float(self.of(Sample(probabilities, labels), bins)[0])


class ExpectedCalibrationError(CalibrationError):
    """Top-label calibration error over bins of equal width, weighted by their items; in [0, 1].

    Also of two choices: the confidence is that of the top choice, not of column 1 (as netcal has it for two).

    Four answers with a confidence of 0.9 of which three are right are overconfident by 0.15:

    >>> probabilities = torch.tensor([[0.9, 0.1]] * 4)
    >>> round(expected_calibration_error(probabilities, torch.tensor([0, 0, 0, 1])), 3)
    0.15

    Source: Guo et al. (arXiv:1706.04599), equation 3.
    """

    name = "ece"
    title = "ECE"
    place = 2

    def of_levels(self, levels: Levels, bins: int) -> numpy.ndarray:
        """Source: equation 3."""
        size, right, confidence = _equal_width(levels, bins)
        return numpy.abs(right - confidence).sum(1) / size.sum(1)


class MaximumCalibrationError(CalibrationError):
    """Largest gap between accuracy and confidence in any of `bins` bins of equal width; in [0, 1].

    Source: Guo et al. (arXiv:1706.04599), equation 5.
    """

    name = "mce"
    title = "MCE"
    place = 4

    def of_levels(self, levels: Levels, bins: int) -> numpy.ndarray:
        """Source: equation 5."""
        size, right, confidence = _equal_width(levels, bins)
        gaps = numpy.abs(right - confidence)
        return numpy.divide(gaps, size, out=numpy.zeros_like(gaps), where=size > 0).max(1)


class AdaptiveCalibrationError(CalibrationError):
    """Top-label calibration error over bins of equal mass, weighted by their items; in [0, 1].

    Items of equal confidence share a bin, so the order of the items never matters; bins are then less equal. Bins lie
    between the quantiles of the confidence, linearly interpolated.

    Source: Mukhoti et al. (arXiv:2002.09437), after Nixon et al. (arXiv:1904.01685).
    """

    name = "adaptive_ece"
    title = "adaptive ECE"
    place = 3

    def of_levels(self, levels: Levels, bins: int) -> numpy.ndarray:
        """The metric of each resample."""
        scores, size, right = levels
        drawn = size.cumsum(1)
        number = int(drawn[0, -1])
        rank = _equal_steps(bins)[1:-1] * (number - 1)
        # The k-th smallest confidence, from 0, is that of the first level up to which more than k items were drawn.
        below, above = (
            scores[numpy.stack([(drawn <= k).sum(1) for k in ranks.tolist()] or [numpy.empty(0, int)], axis=-1)]
            for ranks in (rank.floor(), rank.ceil())
        )
        edges = torch.lerp(torch.from_numpy(below), torch.from_numpy(above), rank - rank.floor()).numpy()
        borders = numpy.searchsorted(scores, edges, side="left").reshape(len(size), bins - 1)
        ends = numpy.pad(borders, ((0, 0), (1, 1)), constant_values=((0, 0), (0, len(scores))))
        sums = numpy.pad((right - scores * size).cumsum(1), ((0, 0), (1, 0)))
        return numpy.abs(numpy.diff(numpy.take_along_axis(sums, ends, axis=1), axis=1)).sum(1) / number


expected_calibration_error = ExpectedCalibrationError()
maximum_calibration_error = MaximumCalibrationError()
adaptive_calibration_error = AdaptiveCalibrationError()


def confidence_calibration_error(confidence: Array, correct: Array, bins: int = 15) -> float:
    """`expected_calibration_error` of predictions that are known by their confidence and whether they are right.

    Args:
        confidence: Probability of each top choice `[items]`.
        correct: Whether it is right `[items]`, bool.
        bins: Number of bins between 0 and 1.

    Raises:
        ValueError: A confidence is NaN or outside of [0, 1], or there are not as many of both.
    """
    return float(expected_calibration_error.of_levels(_levels(confidence, correct), bins)[0])


def ece_floor(probabilities: Array, bins: int = 15, draws: int = 200, seed: int = 0) -> float:
    """The ECE that these predictions have on average if they are perfectly calibrated.

    Right and wrong are drawn from the confidences themselves, so what is left is the noise of as few items as these in
    so many bins: an ECE that is no larger says nothing against a model.

    >>> ece_floor(torch.tensor([[0.7, 0.3]] * 100)) > 5 * ece_floor(torch.tensor([[0.7, 0.3]] * 10_000))
    True

    Args:
        probabilities: `[items, choices]`.
        bins: As of `expected_calibration_error`.
        draws: Simulated sets of labels.
        seed: Of these; the same seed gives the same number.
    """
    confidence = below_one(checked_probabilities(probabilities).max(1).values)
    source = numpy.random.default_rng(seed)
    place = numpy.searchsorted(_equal_steps(bins).numpy(), confidence, side="right") - 1
    member = numpy.eye(bins)[place]
    gaps = (source.random((draws, len(confidence))) < confidence) - confidence
    return float(numpy.abs(gaps @ member).sum(1).mean() / len(confidence))


def reliability_curve(probabilities: Array, labels: Array, bins: int = 15) -> ReliabilityCurve:
    """Confidence, accuracy and count in the bins of equal width that `expected_calibration_error` uses.

    Bin i holds the confidences in [i / bins, (i + 1) / bins); the last one holds 1 too.

    >>> curve = reliability_curve(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]]), torch.tensor([0, 1, 1]), bins=2)
    >>> curve.count.tolist(), curve.accuracy.tolist()
    ([0, 3], [nan, 0.6666666666666666])
    """
    return _curve(Sample(probabilities, labels).confidence, bins)


def confidence_reliability_curve(confidence: Array, correct: Array, bins: int = 15) -> ReliabilityCurve:
    """`reliability_curve` of predictions that are known by their confidence and whether they are right `[items]`.

    Raises:
        ValueError: A confidence is NaN or outside of [0, 1], or there are not as many of both.
    """
    return _curve(_levels(confidence, correct), bins)


def _levels(confidence: Array, correct: Array) -> Levels:
    confidence, correct = checked_confidence(confidence, correct)
    return Levels.of(below_one(confidence), correct.numpy())


def _curve(levels: Levels, bins: int) -> ReliabilityCurve:
    size, right, confidence = (torch.from_numpy(sums[0]) for sums in _equal_width(levels, bins))
    return ReliabilityCurve(confidence / size, right / size, size.long())


def _equal_width(levels: Levels, bins: int) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """Items, right items and sum of confidences in bins of equal width `[resamples, bins]` each."""
    place = numpy.searchsorted(_equal_steps(bins).numpy(), levels.scores, side="right") - 1
    # Levels ascend, and so do their bins: each bin with a level is a run of them.
    filled, starts = numpy.unique(place, return_index=True)
    found = numpy.zeros((3, len(levels.size), bins))
    for sums, values in zip(found, (levels.size, levels.positive, levels.scores * levels.size), strict=True):
        sums[:, filled] = numpy.add.reduceat(values, starts, axis=1)
    return found[0], found[1], found[2]


def _equal_steps(bins: int) -> torch.Tensor:
    """Edges `[bins + 1]` from zero to one, as torch rounds them: numpy's differ in the last bit."""
    if bins < 1:
        raise ValueError(f"Expected at least one bin, but got bins={bins}.")
    return torch.linspace(0, 1, bins + 1, dtype=torch.float64)

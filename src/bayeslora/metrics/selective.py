"""Does confidence tell right predictions from wrong ones, so that the doubtful ones can be left to someone else?

All of these rank items by the confidence of their top choice, or by other `values` in the direction of their `measure`:
`aurc(probabilities, labels, mutual_information, MUTUAL_INFORMATION)`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy
import torch

from bayeslora.metrics.base import Metric
from bayeslora.metrics.direction import CONFIDENCE, Measure
from bayeslora.metrics.inputs import Array, share_of
from bayeslora.metrics.sample import Sample


@dataclass(frozen=True)
class RiskCoverageCurve:
    """What is got wrong when only the most confident items are answered.

    Attributes:
        coverage: Share of items answered `[items]`: 1 / items, 2 / items, ..., 1.
        risk: Share of the answered items whose top choice is wrong `[items]`.
    """

    coverage: torch.Tensor
    risk: torch.Tensor


class RankingMetric(Metric):
    """A metric that ranks items by their confidence, or by other values."""

    def __call__(
        self, probabilities: Array, labels: Array, values: Array | None = None, measure: Measure = CONFIDENCE
    ) -> float:
        """The metric of the items as they are, ranked by `values` in the direction of `measure`."""
        return float(self.of(Sample(probabilities, labels, values=values, measure=measure))[0])


class CorrectnessAuroc(RankingMetric):
    """Area under the ROC curve of the top choice's confidence for "the top choice is right"; in [0, 1].

    It is the probability that a right prediction is more confident than a wrong one, where equal confidence counts
    half. NaN where all predictions are right or all are wrong.

    >>> correctness_auroc(torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([0, 1]))
    1.0

    Source: Hendrycks and Gimpel (arXiv:1610.02136), section 2.
    """

    name = "auroc"
    title = "AUROC"
    higher_is_better = True
    place = 6

    def of(self, sample: Sample) -> numpy.ndarray:
        """The metric of each resample."""
        return sample.ranking.auroc()


class Aurc(RankingMetric):
    """Area under the risk-coverage curve: its risk averaged over all coverages; in [0, 1], lower is better.

    With M items and E errors among those more confident than a level of m items and error rate e, the risk after k of
    all items, M < k <= M + m, is (E + e (k - M)) / k = e + (E - e M) / k, whose sum over k has harmonic numbers.

    Source: Geifman et al. (arXiv:1805.08206).
    """

    name = "aurc"
    title = "AURC"
    place = 7

    def of(self, sample: Sample) -> numpy.ndarray:
        """The metric of each resample."""
        size, wrong, rate, end = _errors(sample)
        start, number = end - size, sample.number
        harmonic = numpy.pad((1 / numpy.arange(1, number + 1)).cumsum(), (1, 0))
        steps = harmonic[end.astype(int)] - harmonic[start.astype(int)]
        risks = wrong + (wrong.cumsum(1) - wrong - rate * start) * steps
        found: numpy.ndarray = risks.sum(1) / number
        return found


class SelectiveAccuracy(Metric):
    """Accuracy on the most confident items: the fewest that are at least a share `coverage` of all.

    >>> selective_accuracy(torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([0, 1]), coverage=0.5)
    1.0

    Raises:
        ValueError: `coverage` is not in (0, 1].
    """

    name = "accuracy_at_80"
    title = "accuracy at 80\N{NO-BREAK SPACE}% coverage"
    higher_is_better = True
    place = 8

    def of(self, sample: Sample, coverage: float = 0.8) -> numpy.ndarray:
        """The metric of each resample."""
        if not 0 < coverage <= 1:
            raise ValueError(
                f"Expected a coverage above 0 and at most 1, but got {coverage}. Pass a share, such as 0.8."
            )
        size, _, rate, end = _errors(sample)
        answered = share_of(sample.number, coverage)
        errors = (rate * (answered - end + size).clip(0, size)).sum(1)
        return 1 - errors / answered

    def __call__(
        self,
        probabilities: Array,
        labels: Array,
        coverage: float = 0.8,
        values: Array | None = None,
        measure: Measure = CONFIDENCE,
    ) -> float:
        """The metric of the items as they are, ranked by `values` in the direction of `measure`."""
        return float(self.of(Sample(probabilities, labels, values=values, measure=measure), coverage)[0])


correctness_auroc, aurc, selective_accuracy = CorrectnessAuroc(), Aurc(), SelectiveAccuracy()


def _errors(sample: Sample) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """Of each level, the most confident first `[resamples, levels]`: items, wrong ones, their share, and items so far.

    Items of one level are wrong as often as their mean.
    """
    size = sample.ranking.size[:, ::-1]
    wrong = size - sample.ranking.positive[:, ::-1]
    rate = numpy.divide(wrong, size, out=numpy.zeros_like(wrong), where=size > 0)
    return size, wrong, rate, size.cumsum(1)


def risk_coverage_curve(
    probabilities: Array, labels: Array, values: Array | None = None, measure: Measure = CONFIDENCE
) -> RiskCoverageCurve:
    """Error rate among the k most confident items, for k = 1 to all.

    Where the k-th place falls among items of equal confidence, the risk is its mean over the orders they could stand
    in, so the order of the items never matters. A threshold never parts such items: at the last of them, the risk is
    that of all items on the sure side of their common value.

    Source: Geifman and El-Yaniv (arXiv:1705.08500).
    """
    levels = Sample(probabilities, labels, values=values, measure=measure).ranking
    size, right = levels.size[0, ::-1], levels.positive[0, ::-1]
    answered = numpy.arange(1, int(size.sum()) + 1)
    errors = numpy.repeat(1 - right / size, size.astype(int)).cumsum()
    return RiskCoverageCurve(torch.from_numpy(answered / len(answered)), torch.from_numpy(errors / answered))

"""Scores of single predictions: is the top choice right, and how likely was the label?"""

from __future__ import annotations

import numpy
import torch

from bayeslora.metrics.base import Metric
from bayeslora.metrics.sample import Sample

# The smallest probability `nll` takes at its word: the smallest normal float32, 1.2e-38, or 87.3 nats.
SMALLEST_PROBABILITY = torch.finfo(torch.float32).tiny


class Accuracy(Metric):
    """Share of items whose most probable choice is the label; the first of equal choices counts.

    >>> accuracy(torch.tensor([[0.7, 0.3], [0.4, 0.6]]), torch.tensor([0, 0]))
    0.5
    """

    name = "accuracy"
    title = "accuracy"
    higher_is_better = True
    place = 0

    def of(self, sample: Sample) -> numpy.ndarray:
        """The metric of each resample."""
        return sample.mean(sample.correct)


class NegativeLogLikelihood(Metric):
    """Mean negative log-likelihood of the labels in nats.

    A label's probability is raised to at least `SMALLEST_PROBABILITY`, so one item costs at most 87.3 nats
    and the mean stays finite.

    >>> round(nll(torch.tensor([[0.5, 0.5], [0.25, 0.75]]), torch.tensor([0, 1])), 4)  # (log 2 + log 4/3) / 2
    0.4904
    """

    name = "nll"
    title = "NLL (nats)"
    place = 1

    def of(self, sample: Sample) -> numpy.ndarray:
        """The metric of each resample."""
        return sample.mean(-sample.of_label.clamp_min(SMALLEST_PROBABILITY).log())


class Brier(Metric):
    """Multi-class Brier score in [0, 2]: squared error summed over choices, averaged over items.

    Source: Brier (1950), Verification of forecasts expressed in terms of probability.

    >>> round(brier(torch.tensor([[0.8, 0.2]]), torch.tensor([0])), 4)
    0.08
    """

    name = "brier"
    title = "Brier"
    place = 5

    def of(self, sample: Sample) -> numpy.ndarray:
        """The metric of each resample."""
        return sample.mean(sample.rows.square().sum(1) - 2 * sample.of_label + 1)


accuracy, nll, brier = Accuracy(), NegativeLogLikelihood(), Brier()

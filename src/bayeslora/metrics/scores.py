"""Scores of single predictions: is the top choice right, how likely was the label, and how far is it in an order?"""

from __future__ import annotations

import numpy
import torch

from bayeslora.metrics.base import Metric
from bayeslora.metrics.inputs import Array, checked, checked_probabilities
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


def ranked_probability_score(probabilities: Array, labels: Array) -> float:
    """Mean ranked probability score in [0, 1] of choices that stand in an order; lower is better.

    sum_k (P(level <= k) - 1[label <= k])^2 / (levels - 1), averaged over items: a proper score to which a level beside
    the right one is a smaller error than one far away. It means nothing for choices without an order, so no report
    shows it unasked. Source: Epstein (1969), A scoring system for probability forecasts of ranked categories; divided
    by the number of borders as in Murphy (1971).

    >>> beside, far = torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    >>> [ranked_probability_score(one, torch.tensor([0])) for one in (beside, far)]
    [0.5, 1.0]

    Args:
        probabilities: Of the levels, lowest first `[items, levels]`; two levels or more.
        labels: `[items]`, or probabilities of the levels `[items, levels]`, which count in expectation.

    Raises:
        ValueError: The two do not fit together, a row is no distribution, or there is one level only.
        TypeError: Labels `[items]` are not integers.
    """
    given = torch.as_tensor(labels).detach().cpu()
    if given.ndim == 2:
        rows, targets = checked_probabilities(probabilities), checked_probabilities(given)
        if rows.shape != targets.shape:
            raise ValueError(
                f"Expected labels of the probabilities' shape {list(rows.shape)}, but got {list(targets.shape)}. Pass "
                "a row per item with a column per level."
            )
    else:
        rows, hard = checked(probabilities, given)
        targets = torch.nn.functional.one_hot(hard, rows.shape[1]).double()
    if rows.shape[1] < 2:
        raise ValueError("Expected two levels or more, but got one. Pass a column per level.")
    below, right = rows.cumsum(1)[:, :-1], targets.cumsum(1)[:, :-1]
    # E[(F - 1[label <= k])^2] where the label is drawn from the target.
    return float((below.square() - 2 * below * right + right).mean())

"""Scores of single predictions: is the top choice right, and how likely was the label?"""

import torch
from torch.nn import functional

from bayeslora.metrics.inputs import Array, checked, top_choice

# The smallest probability `nll` takes at its word: the smallest normal float32, 1.2e-38, or 87.3 nats.
SMALLEST_PROBABILITY = torch.finfo(torch.float32).tiny


def accuracy(probabilities: Array, labels: Array) -> float:
    """Share of items whose most probable choice is the label; the first of equal choices counts.

    >>> accuracy(torch.tensor([[0.7, 0.3], [0.4, 0.6]]), torch.tensor([0, 0]))
    0.5
    """
    _, correct = top_choice(*checked(probabilities, labels))
    return correct.double().mean().item()


def nll(probabilities: Array, labels: Array) -> float:
    """Mean negative log-likelihood of the labels in nats.

    A label's probability is raised to at least `SMALLEST_PROBABILITY`, so one item costs at most 87.3 nats
    and the mean stays finite.

    >>> round(nll(torch.tensor([[0.5, 0.5], [0.25, 0.75]]), torch.tensor([0, 1])), 4)  # (log 2 + log 4/3) / 2
    0.4904
    """
    probabilities, labels = checked(probabilities, labels)
    return functional.nll_loss(probabilities.clamp_min(SMALLEST_PROBABILITY).log(), labels).item()


def brier(probabilities: Array, labels: Array) -> float:
    """Multi-class Brier score in [0, 2]: squared error summed over choices, averaged over items.

    Source: Brier (1950), Verification of forecasts expressed in terms of probability.

    >>> round(brier(torch.tensor([[0.8, 0.2]]), torch.tensor([0])), 4)
    0.08
    """
    probabilities, labels = checked(probabilities, labels)
    target = functional.one_hot(labels, probabilities.shape[1])
    return (probabilities - target).square().sum(dim=1).mean().item()

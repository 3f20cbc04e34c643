"""Scores of single predictions: is the top choice right, and how likely was the label?"""

import torch
from torch.nn import functional

from bayeslora.metrics.inputs import Array, checked, top_choice

# The smallest probability `nll` takes at its word: the smallest normal float32, 1.2e-38, or 87.3 nats.
SMALLEST_PROBABILITY = torch.finfo(torch.float32).tiny


def accuracy(probabilities: Array, labels: Array) -> float:
    """Share of items whose most probable choice is the label; the first of equal choices counts."""
    _, correct = top_choice(*checked(probabilities, labels))
    return correct.double().mean().item()


def nll(probabilities: Array, labels: Array) -> float:
    """Mean negative log-likelihood of the labels in nats.

    A label's probability is raised to at least `SMALLEST_PROBABILITY`, so one item costs at most 87.3 nats
    and the mean stays finite.
    """
    probabilities, labels = checked(probabilities, labels)
    return functional.nll_loss(probabilities.clamp_min(SMALLEST_PROBABILITY).log(), labels).item()


def brier(probabilities: Array, labels: Array) -> float:
    """Multi-class Brier score in [0, 2]: squared error summed over choices, averaged over items.

    Source: Brier (1950), Verification of forecasts expressed in terms of probability.
    """
    probabilities, labels = checked(probabilities, labels)
    target = functional.one_hot(labels, probabilities.shape[1])
    return (probabilities - target).square().sum(dim=1).mean().item()

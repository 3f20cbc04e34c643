"""How uncertain a prediction is, and whether unfamiliar items are the uncertain ones."""

from __future__ import annotations

import numpy
import torch

from bayeslora.metrics.direction import ENTROPY, Measure
from bayeslora.metrics.inputs import Array, checked_probabilities, checked_values
from bayeslora.metrics.sample import Levels


def entropy(probabilities: Array) -> torch.Tensor:
    """Entropy of each row `[items]` in nats, where 0 log 0 = 0; from 0 to log(choices).

    >>> entropy(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    tensor([0.0000, 0.6931], dtype=torch.float64)
    """
    return torch.special.entr(checked_probabilities(probabilities)).sum(dim=1)


def out_of_distribution_auroc(inside: Array, outside: Array, measure: Measure = ENTROPY) -> float:
    """How well an uncertainty tells unfamiliar items from familiar ones: area under the ROC curve, in [0, 1].

    It is the probability that an item from outside is more uncertain than one from inside, where equal uncertainty
    counts half; 0.5 is chance.

    >>> out_of_distribution_auroc(inside=torch.tensor([0.1, 0.3]), outside=torch.tensor([0.3, 0.9]))
    0.875

    Args:
        inside: Uncertainty (entropy or mutual information, nats) of items like the training items `[inside items]`.
        outside: The same of items from elsewhere `[outside items]`.
        measure: What they are; its direction counts. Confidences need `CONFIDENCE`.

    Raises:
        ValueError: An array is not one-dimensional, is empty, or holds a number that is not finite.

    Source: Hendrycks and Gimpel (arXiv:1610.02136), section 2.
    """
    scores = [measure.doubt(checked_values(name, part)) for name, part in (("inside", inside), ("outside", outside))]
    return float(detection_auroc(*(part.numpy() for part in scores))[0])


def detection_auroc(
    inside: numpy.ndarray,
    outside: numpy.ndarray,
    inside_counts: numpy.ndarray | None = None,
    outside_counts: numpy.ndarray | None = None,
) -> numpy.ndarray:
    """`out_of_distribution_auroc` of each resample `[resamples]`.

    Args:
        inside: Uncertainty of the test items `[inside items]`, larger for the more uncertain.
        outside: Uncertainty of the out-of-distribution items `[outside items]`.
        inside_counts: How often each resample has each item `[resamples, inside items]`; default: one resample, the
            items themselves.
        outside_counts: The same `[resamples, outside items]`.
    """
    counts = [
        numpy.ones((1, len(part))) if given is None else given
        for part, given in ((inside, inside_counts), (outside, outside_counts))
    ]
    is_outside = numpy.repeat([False, True], [len(inside), len(outside)])
    return Levels.of(numpy.concatenate([inside, outside]), is_outside, numpy.concatenate(counts, axis=1)).auroc()

"""How uncertain a prediction is, and whether unfamiliar items are the uncertain ones."""

import numpy
import torch
from sklearn.metrics import roc_auc_score

from bayeslora.metrics.direction import ENTROPY, Measure
from bayeslora.metrics.inputs import Array, checked_probabilities


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
    is_outside = numpy.repeat([False, True], [len(part) for part in scores])
    return float(roc_auc_score(is_outside, torch.cat(scores).numpy()))


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

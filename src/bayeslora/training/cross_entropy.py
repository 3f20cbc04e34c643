"""The cross-entropy of items with choices."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["smoothed_cross_entropy"]


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy [rows] in nats of logits [rows, choices], whose -inf mark choices that an item does not have.

    Args:
        logits: Of the choices.
        labels: The right choices [rows], or distributions over the choices [rows, choices].
        smoothing: The target is (1 - smoothing) times that plus smoothing spread evenly over the item's choices.
    """
    log_probabilities = torch.log_softmax(logits, -1)
    available = logits > -torch.inf
    finite = log_probabilities.masked_fill(~available, 0)
    if labels.dim() == 2:
        nll = -(labels.to(finite) * finite).sum(-1)
    else:
        nll = nn.functional.nll_loss(log_probabilities, labels, reduction="none")
    if smoothing == 0:
        return nll
    uniform = -finite.sum(-1) / available.sum(-1)
    return (1 - smoothing) * nll + smoothing * uniform

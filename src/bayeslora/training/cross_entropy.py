"""The cross-entropy of items with choices."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["smoothed_cross_entropy"]


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy [rows] in nats of logits [rows, choices], whose -inf mark choices that an item does not have.

    The target is (1 - smoothing) on the label plus smoothing spread evenly over the item's choices.
    """
    log_probabilities = torch.log_softmax(logits, -1)
    nll = nn.functional.nll_loss(log_probabilities, labels, reduction="none")
    if smoothing == 0:
        return nll
    available = logits > -torch.inf
    uniform = -log_probabilities.masked_fill(~available, 0).sum(-1) / available.sum(-1)
    return (1 - smoothing) * nll + smoothing * uniform

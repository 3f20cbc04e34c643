"""The cross-entropy of items with choices."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bayeslora.scoring import ChoiceBatch


def item_losses(batch: ChoiceBatch, logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """What training minimises for each row of a batch [rows], nats: the cross-entropy, as `smoothed_cross_entropy`.

    Where the batch has `ranked` [batch], so many times the ranked probability score is added; where it has `weights`
    [batch], an item's loss counts so often.

    Args:
        batch: Of items.
        logits: Of their choices [rows, choices]; rows is batch, or draws * batch.
        targets: As `labels` of `smoothed_cross_entropy`.
        smoothing: As there.
    """
    losses = smoothed_cross_entropy(logits, targets, smoothing)
    copies = len(logits) // batch.batch_size
    if "ranked" in batch:
        losses = losses + batch["ranked"].repeat(copies) * ranked_probability_scores(logits, targets)
    return losses * batch["weights"].repeat(copies) if "weights" in batch else losses


def ranked_probability_scores(logits: Tensor, targets: Tensor) -> Tensor:
    """As `bayeslora.metrics.ranked_probability_score`, of each row [rows] and with a gradient.

    Args:
        logits: Of the levels, lowest first [rows, levels], -inf where an item has no such level.
        targets: Right levels [rows], or distributions over them [rows, levels].
    """
    if targets.dim() == 1:
        targets = nn.functional.one_hot(targets, logits.shape[-1])
    below, right = torch.softmax(logits, -1).cumsum(-1), targets.to(logits.dtype).cumsum(-1)
    borders = (logits > -torch.inf).sum(-1) - 1
    # From the last level on both sums are 1, and add nothing.
    return (below.square() - 2 * below * right + right).sum(-1) / borders.clamp_min(1)


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

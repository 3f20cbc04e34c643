"""What a head learns of items: their labels, and how much each of them counts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bayeslora.scoring.base import ChoiceItem, choice_labels


def labels_of(items: Sequence[ChoiceItem]) -> Tensor:
    """Index of the right choice of each training item [items], or where some labels are distributions [items, choices].

    Raises:
        ValueError: An item has no label.
    """
    found = choice_labels(items)
    if not found:
        unlabelled = next(item.id for item in items if item.label is None)
        raise ValueError(f"a head needs labels, but training item {unlabelled!r} has none; leave such items out.")
    return found["label_probabilities"].double() if "label_probabilities" in found else found["labels"]


def weights_of(items: Sequence[ChoiceItem]) -> Tensor | None:
    """How much each label counts [items], float64; None where all count once."""
    weights = torch.tensor([getattr(item, "weight", 1.0) for item in items], dtype=torch.float64)
    return None if bool((weights == 1).all()) else weights

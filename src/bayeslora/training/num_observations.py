"""N of the ELBO in the unit of the loss: rows, or in language modelling target tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def row_count(dataset: Any) -> int | None:
    """Number of rows; None for a dataset without a length."""
    try:
        return len(dataset)
    except TypeError:
        return None


def rows_have_token_labels(dataset: Any) -> bool:
    """Whether the rows themselves have a label for each token; the first one tells."""
    first = dataset[0] if row_count(dataset) else None
    labels = first.get("labels") if isinstance(first, Mapping) else None
    try:
        return labels is not None and has_token_labels({"labels": torch.as_tensor(labels).unsqueeze(0)})
    except (TypeError, ValueError):
        return False


def has_token_labels(batch: Mapping[str, Any]) -> bool:
    """Whether the labels of a batch are whole numbers `[rows, tokens]`."""
    labels = batch.get("labels")
    return isinstance(labels, Tensor) and labels.dim() == 2 and not labels.is_floating_point()


def count_target_tokens(dataset: Any, collator: Callable[[list[Any]], Any]) -> int:
    """Target tokens of a dataset: the labels that the loss of a causal language model counts, row by row.

    These are all but the first of a sequence and those of -100. Each row is collated by itself, so that labels which
    the collator makes or hides (at the starts of packed texts) count as in training, and padding does not. A collator
    that draws random numbers leaves torch's global generator as it was.

    Args:
        dataset: With a length.
        collator: Makes a batch with `labels [1, tokens]` of one row.

    Raises:
        ValueError: There is no target token.
    """
    total = 0
    with torch.random.fork_rng(devices=[]):
        for index in range(len(dataset)):
            batch = collator([dataset[index]])
            shifted = batch["shift_labels"] if "shift_labels" in batch else batch["labels"][..., 1:]
            total += int((shifted != -100).sum())
    if total == 0:
        raise ValueError(
            f"none of the {len(dataset)} training rows has a target token: all labels are -100, or no row has a second "
            "token; check the masks of prompts, and max_length."
        )
    return total

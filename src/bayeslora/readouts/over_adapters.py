"""Heads over adapters, as their training sees them: what is read of the adapted model, and fitted to it at each epoch.

Adapters lie below a layer that heads read. A training item is read by the head of the folds without it, any other item
by the head of all, in closed form. What is read of the frozen model does not change and comes with the batch.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from bayeslora.scoring.base import ChoiceBatch, ChoiceItem

NO_FOLD = -1
"""Of an item that heads of all training items read."""


class HeadsOverAdapters(ABC):
    """Reads the batches of one model with adapters.

    Args:
        every: Numbers of layers below each place that may be read, rising.

    Attributes:
        layers: Those of `every` that lie above the first adapter.
    """

    def __init__(self, every: Sequence[int]):
        self.every, self.layers = list(every), list(every)

    @abstractmethod
    def __call__(self, batch: Any, items: Sequence[ChoiceItem]) -> ChoiceBatch:
        """The batch of `items` that the heads read."""

    @abstractmethod
    def features(self, model: nn.Module, batch: Any) -> Any:
        """Of a batch's items, in each draw behind the one before, with the graph of the adapted layers; on the CPU."""

    @abstractmethod
    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        """[rows, choices]: of training items what their fold's head says, with a graph; of others the log-probabilities
        of the heads of all, integrated over their posteriors.

        Raises:
            RuntimeError: There is no head yet.
        """

    def without_cache(self) -> Self:
        """One that takes nothing from what was read before; itself where nothing is kept."""
        return self

    @abstractmethod
    def novelty(self, items: Sequence[ChoiceItem]) -> Tensor:
        """Of the items [items] (`bayeslora.readouts.novelty`)."""

    @abstractmethod
    def begin(self, items: Sequence[Any], folds: int, seed: int) -> None:
        """Take the training items over, in so many folds."""

    @abstractmethod
    def refit(self, parts: Sequence[Any], order: Tensor) -> None:
        """Fit the heads of the folds to the training items.

        Args:
            parts: Their `features`, batch by batch.
            order: Where each of them stands in these behind each other [items].
        """

    @abstractmethod
    def finish(self, parts: Sequence[Any], order: Tensor, average: bool | None) -> dict[str, Tensor]:
        """Fit the heads of all items, which from now on read every item; their tensors.

        Args:
            parts: As of `refit`, like `order`.
            order: As there.
            average: Whether probabilities are averaged with those of the frozen model's head; None: by default.
        """

    @property
    @abstractmethod
    def fitted(self) -> bool:
        """Whether there are heads of the folds."""

    @abstractmethod
    def fold_tensors(self) -> dict[str, Tensor]:
        """The heads of the folds, for a checkpoint."""

    @abstractmethod
    def restore_folds(self, tensors: Mapping[str, Tensor]) -> None:
        """The heads that `fold_tensors` gave."""

    @abstractmethod
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The heads whose tensors `finish` gave, whatever else is in the state.

        Raises:
            ValueError: A tensor is missing, or all.
        """

    @abstractmethod
    def described(self) -> dict[str, Any]:
        """What was chosen, for metrics.json."""


def folds_of(items: Sequence[Any], count: int, seed: int) -> Tensor:
    """The fold of each item [items]; items of one group, or with one question, share it.

    Raises:
        ValueError: There are not two groups.
    """
    groups = [item.question if item.group is None else item.group for item in items]
    names = sorted(set(groups))
    if len(names) < 2:
        raise ValueError("cross-fitting needs training items with at least two different questions or groups.")
    random.Random(seed).shuffle(names)
    place = {name: number % min(count, len(names)) for number, name in enumerate(names)}
    return torch.tensor([place[group] for group in groups])


def repeated(tensor: Tensor, copies: int) -> Tensor:
    """`tensor` so many times behind itself, on the CPU."""
    return tensor.cpu().repeat(copies, *[1] * (tensor.dim() - 1))

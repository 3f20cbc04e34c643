"""Heads over adapters that read choices: what the adapted layers hold at each, beside what the frozen model says.

The vectors of the adapted layers come out of the forward that a method trains or samples, so gradients reach the
adapters, and draws of them are rows (`bayeslora.readouts.over_adapters`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from bayeslora.prediction.predictive import Predictive
from bayeslora.readouts.blocks import BlockScaling, OptionFeatures
from bayeslora.readouts.description import describe_head, summary
from bayeslora.readouts.features import read_together
from bayeslora.readouts.files import heads_from_state, heads_state
from bayeslora.readouts.head import Head, fit_head, given
from bayeslora.readouts.hidden import POOLINGS, differentiable_vectors
from bayeslora.readouts.labels import labels_of, weights_of
from bayeslora.readouts.linear import LinearHeads, cross_fitted
from bayeslora.readouts.over_adapters import NO_FOLD, HeadsOverAdapters, folds_of, repeated
from bayeslora.scoring.base import ChoiceBatch, ChoiceItem
from bayeslora.scoring.cloze import ClozeBatch
from bayeslora.scoring.unpacked import UnpackedBatch
from bayeslora.system.log import logger

_ADAPTED = "adapted "
"""What the names of blocks that are read of the adapted model begin with."""


def without_adapted(features: OptionFeatures) -> OptionFeatures:
    """Those of the frozen model alone."""
    kept = {name: block for name, block in features.hidden.items() if not name.startswith(_ADAPTED)}
    return replace(features, hidden=kept)


def over_adapters(frozen: Head, features: OptionFeatures, labels: Tensor) -> Head:
    """The head of the frozen model moved onto its adapted layers: its prior and temperature, and a posterior of theirs.

    Adapters have learned from the labels of all items, so what they hold of these looks better than it is: evidence
    and leave-one-out predictions of it would trust it too much.

    Args:
        frozen: Fitted to the same items in the model without adapters.
        features: Of the items, with the adapted layers.
        labels: [items].
    """
    read = {name: f"{_ADAPTED}{name}" for name in features.hidden if f"{_ADAPTED}{name}" in features.hidden}
    scales = {read.get(name, name): scale for name, scale in frozen.scaling.scales.items()}
    kept = replace(features, hidden={name: features.hidden[name] for name in scales if name in features.hidden})
    return given(replace(frozen, scaling=BlockScaling(scales)), kept, labels, frozen.precision)


def heads_over_adapters(frozen: Head, features: OptionFeatures, labels: Tensor, average: bool | None) -> list[Head]:
    """The head of items on their adapted layers, and unless `average` is False that of the frozen model.

    Args:
        frozen: As of `over_adapters`, like `features` and `labels`.
        features: Of the items.
        labels: Of the items.
        average: As of `HeadsOverAdapters.finish`.
    """
    head = over_adapters(frozen, features, labels)
    return [head] if average is False else [head, frozen]


class FrozenFeatures(Protocol):
    """The features of items in the model without adapters."""

    def __call__(self, items: Sequence[ChoiceItem]) -> OptionFeatures:
        """Of `items`."""

    def without_cache(self) -> FrozenFeatures:
        """Such as have read nothing yet."""


class OptionReading(HeadsOverAdapters):
    """Reads the choices of items.

    Args:
        every: As of `HeadsOverAdapters`.
        frozen: The features of items in the model without adapters.

    Attributes:
        folds: Of the training items, by their id, while there is a training.
        cross_fitted: The heads of these folds.
        heads: Those of all training items, whose probabilities are averaged.
        taught: The features that they were fitted to in this process.
    """

    def __init__(self, every: Sequence[int], frozen: FrozenFeatures):
        super().__init__(every)
        self.frozen = frozen
        self.folds: dict[str, int] = {}
        self.cross_fitted: LinearHeads | None = None
        self.heads: list[Head] = []
        self.taught: OptionFeatures | None = None
        self._labels = self._folds = torch.empty(0)
        self._weights: Tensor | None = None
        self._frozen: Head | None = None
        # Collators, devices and trainers build a batch anew from its tensors, so its class says who reads it.
        self._packed = type("ReadBatch", (ReadBatch,), {"reading": self})
        self._unpacked = type("UnpackedReadBatch", (_UnpackedReadBatch,), {"reading": self})

    def __call__(self, batch: ClozeBatch, items: Sequence[ChoiceItem]) -> ReadBatch:
        """The batch of `items` that the heads read."""
        known = self.frozen(items)
        tensors = {f"hidden.{name}": block for name, block in known.hidden.items()}
        tensors |= {f"number.{name}": block for name, block in known.numbers.items()}
        folds = torch.tensor([self.folds.get(item.id, NO_FOLD) for item in items])
        read: ReadBatch = self._packed(**batch, **tensors, questions=known.questions, fold=folds)
        return read

    def unpacked(self, packed: ReadBatch) -> ChoiceBatch:
        """The same with one row for each choice."""
        own = {name: tensor for name, tensor in packed.items() if name in ("fold", "questions") or "." in name}
        return self._unpacked(**UnpackedBatch.of(packed), **own)

    def features(self, model: nn.Module, batch: ChoiceBatch) -> OptionFeatures:
        """Of a batch's items, in each draw behind the one before, with the graph of the adapted layers; on the CPU."""
        suited: Any = batch.suited_to(model)
        vectors = differentiable_vectors(model, suited, self.layers).cpu()
        copies = len(vectors) // suited.batch_size
        blocks: dict[str, dict[str, Tensor]] = {"hidden": {}, "number": {}}
        for name, tensor in suited.items():
            kind, _, block = name.partition(".")
            if block:
                blocks[kind][block] = repeated(tensor, copies)
        for place, layer in enumerate(self.layers):
            for number, pooling in enumerate(POOLINGS):
                blocks["hidden"][f"{_ADAPTED}layer {layer}, {pooling}"] = vectors[:, 1:, place, number]
        mask, questions = (repeated(suited[name], copies) for name in ("choice_mask", "questions"))
        return OptionFeatures(blocks["hidden"], mask, questions, blocks["number"])

    def logits(self, model: nn.Module, batch: ChoiceBatch) -> Tensor:
        """[rows, choices]: of training items the utilities that their fold's head gives them over its temperature, with
        a graph; of others the log-probabilities of the heads of all, integrated over their posteriors, or where there
        is a graph the utilities.

        Raises:
            RuntimeError: There is no head yet.
        """
        features = self.features(model, batch)
        folds = repeated(batch["fold"], len(features) // batch.batch_size)
        if bool((folds != NO_FOLD).all()):
            if self.cross_fitted is None:
                raise RuntimeError("no head was fitted to the folds yet; `bayeslora train` does so at each epoch.")
            found = self.cross_fitted.logits(features, folds)
        elif torch.is_grad_enabled():
            found = LinearHeads.of(self._fitted()[:1]).logits(features, torch.zeros_like(folds))
        else:
            each = [head.predict(features).predictive.log_probabilities for head in self._fitted()]
            found = Predictive(torch.stack(each)).log_probabilities
        return found.to(batch["choice_mask"].device)

    def without_cache(self) -> Self:
        """It reads the frozen model anew."""
        anew = copy.copy(self)
        anew.frozen = self.frozen.without_cache()
        return anew

    def novelty(self, items: Sequence[ChoiceItem]) -> Tensor:
        """Of the items' questions [items] (`bayeslora.readouts.novelty`)."""
        return self._fitted()[0].novelty(self.frozen(items).questions)

    def begin(self, items: Sequence[Any], folds: int, seed: int) -> None:
        """Take the training items over, in so many folds."""
        self._labels, self._weights = labels_of(items), weights_of(items)
        self._folds = folds_of(items, folds, seed)
        self.folds = dict(zip((item.id for item in items), self._folds.tolist(), strict=True))

    @staticmethod
    def joined(parts: Sequence[OptionFeatures], order: Tensor) -> OptionFeatures:
        """The `features` of all parts in the order of their items; arguments as of `refit`."""
        return read_together(parts)[order]

    def refit(self, parts: Sequence[OptionFeatures], order: Tensor) -> None:
        """Fit the heads of the folds, on the adapters as they are."""
        features = self.joined(parts, order)
        head = over_adapters(self._frozen_head(features), features, self._labels)
        self.heads = [head]
        self.cross_fitted = cross_fitted(head, features, self._labels, self._folds)

    def finish(self, parts: Sequence[OptionFeatures], order: Tensor, average: bool | None) -> dict[str, Tensor]:
        """Fit the heads of all items, which from now on read every item; their tensors."""
        features = self.joined(parts, order)
        self.heads = heads_over_adapters(self._frozen_head(features), features, self._labels, average)
        self.folds, self.cross_fitted, self.taught = {}, None, features
        return heads_state(self.heads)

    def _frozen_head(self, features: OptionFeatures) -> Head:
        """The head of the training items in the model without adapters, which no training changes."""
        if self._frozen is None:
            self._frozen = fit_head(without_adapted(features), self._labels, weights=self._weights)
            logger.info("the head of the frozen model: %s", summary(describe_head(self._frozen)))
        return self._frozen

    @property
    def fitted(self) -> bool:
        """Whether there are heads of the folds."""
        return self.cross_fitted is not None

    def fold_tensors(self) -> dict[str, Tensor]:
        """The heads of the folds, for a checkpoint."""
        return {} if self.cross_fitted is None else self.cross_fitted.tensors()

    def restore_folds(self, tensors: Mapping[str, Tensor]) -> None:
        """The heads that `fold_tensors` gave."""
        self.cross_fitted = LinearHeads.restored(tensors)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The heads whose tensors `finish` gave, whatever else is in the state."""
        self.heads = heads_from_state(state)

    def described(self) -> dict[str, Any]:
        """`describe_head` of the adapted layers' head."""
        return describe_head(self._fitted()[0])

    def _fitted(self) -> list[Head]:
        if not self.heads:
            raise RuntimeError("no head was fitted yet; `bayeslora train` does so.")
        return self.heads


class ReadBatch(ClozeBatch):
    """A packed batch with `fold` [batch] (-1: none), `questions` [batch, features] and blocks `hidden.<name>`,
    `number.<name>` [batch, choices, features] of the frozen model."""

    reading: ClassVar[OptionReading]

    def suited_to(self, model: nn.Module) -> ChoiceBatch:
        """One row per choice for a model that would not read packed choices right."""
        return self if super().suited_to(model) is self else self.reading.unpacked(self)

    def raw_logits(self, model: nn.Module) -> Tensor:
        """`OptionReading.logits`."""
        return self.reading.logits(model, self)


class _UnpackedReadBatch(UnpackedBatch):
    reading: ClassVar[OptionReading]

    def raw_logits(self, model: nn.Module) -> Tensor:
        return self.reading.logits(model, self)

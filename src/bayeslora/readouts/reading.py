"""Batches that heads read: what the adapted layers hold at each choice, beside what the frozen model says.

The vectors of the adapted layers come out of the forward that a method trains or samples, so gradients reach the
adapters, and draws of them are rows. What is read of the frozen model does not change and comes with the batch. A
training item is read by the head of the folds without it; any other item by the head of all, in closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bayeslora.prediction.predictive import Predictive
from bayeslora.readouts.blocks import BlockScaling, OptionFeatures
from bayeslora.readouts.head import Head, given
from bayeslora.readouts.hidden import POOLINGS, differentiable_vectors
from bayeslora.readouts.linear import LinearHeads
from bayeslora.scoring.base import ChoiceBatch, ChoiceItem
from bayeslora.scoring.cloze import ClozeBatch
from bayeslora.scoring.unpacked import UnpackedBatch

__all__ = ["ReadBatch", "Reading", "over_adapters", "without_adapted"]

_NO_FOLD = -1


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


class Reading:
    """Reads the batches of one model with adapters.

    Args:
        layers: Numbers of layers below each place that is read, above the first adapter; rising.
        frozen: The features of items in the model without adapters.

    Attributes:
        folds: Of the training items, by their id, while there is a training.
        cross_fitted: The heads of these folds.
        heads: Those of all training items, whose probabilities are averaged.
    """

    def __init__(self, layers: Sequence[int], frozen: Callable[[Sequence[ChoiceItem]], OptionFeatures]):
        self.layers, self.frozen = list(layers), frozen
        self.folds: dict[str, int] = {}
        self.cross_fitted: LinearHeads | None = None
        self.heads: list[Head] = []
        # Collators, devices and trainers build a batch anew from its tensors, so its class says who reads it.
        self._packed = type("ReadBatch", (ReadBatch,), {"reading": self})
        self._unpacked = type("UnpackedReadBatch", (_UnpackedReadBatch,), {"reading": self})

    def __call__(self, batch: ClozeBatch, items: Sequence[ChoiceItem]) -> ReadBatch:
        """The batch of `items` that the heads read."""
        known = self.frozen(items)
        tensors = {f"hidden.{name}": block for name, block in known.hidden.items()}
        tensors |= {f"number.{name}": block for name, block in known.numbers.items()}
        folds = torch.tensor([self.folds.get(item.id, _NO_FOLD) for item in items])
        read: ReadBatch = self._packed(**batch, **tensors, questions=known.questions, fold=folds)
        return read

    def unpacked(self, packed: ReadBatch) -> ChoiceBatch:
        """The same with one row for each choice."""
        own = {name: tensor for name, tensor in packed.items() if _is_own(name)}
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
                blocks[kind][block] = _repeated(tensor, copies)
        for place, layer in enumerate(self.layers):
            for number, pooling in enumerate(POOLINGS):
                blocks["hidden"][f"{_ADAPTED}layer {layer}, {pooling}"] = vectors[:, 1:, place, number]
        mask, questions = (_repeated(suited[name], copies) for name in ("choice_mask", "questions"))
        return OptionFeatures(blocks["hidden"], mask, questions, blocks["number"])

    def logits(self, model: nn.Module, batch: ChoiceBatch) -> Tensor:
        """[rows, choices]: of training items the utilities that their fold's head gives them over its temperature, with
        a graph; of others the log-probabilities of the heads of all, integrated over their posteriors, or where there
        is a graph the utilities.

        Raises:
            RuntimeError: There is no head yet.
        """
        features = self.features(model, batch)
        folds = _repeated(batch["fold"], len(features) // batch.batch_size)
        if bool((folds != _NO_FOLD).all()):
            if self.cross_fitted is None:
                raise RuntimeError("no head was fitted to the folds yet; `bayeslora train` does so at each epoch.")
            found = self.cross_fitted.logits(features, folds)
        elif torch.is_grad_enabled():
            found = LinearHeads.of(self._fitted()[:1]).logits(features, torch.zeros_like(folds))
        else:
            each = [head.predict(features).predictive.log_probabilities for head in self._fitted()]
            found = Predictive(torch.stack(each)).log_probabilities
        return found.to(batch["choice_mask"].device)

    def novelty(self, items: Sequence[ChoiceItem]) -> Tensor:
        """Of the items' questions [items] (`bayeslora.readouts.novelty`)."""
        return self._fitted()[0].novelty(self.frozen(items).questions)

    def _fitted(self) -> list[Head]:
        if not self.heads:
            raise RuntimeError("no head was fitted yet; `bayeslora train` does so.")
        return self.heads


class ReadBatch(ClozeBatch):
    """A packed batch with `fold` [batch] (-1: none), `questions` [batch, features] and blocks `hidden.<name>`,
    `number.<name>` [batch, choices, features] of the frozen model."""

    reading: ClassVar[Reading]

    def suited_to(self, model: nn.Module) -> ChoiceBatch:
        """One row per choice for a model that would not read packed choices right."""
        return self if super().suited_to(model) is self else self.reading.unpacked(self)

    def raw_logits(self, model: nn.Module) -> Tensor:
        """`Reading.logits`."""
        return self.reading.logits(model, self)


class _UnpackedReadBatch(UnpackedBatch):
    reading: ClassVar[Reading]

    def raw_logits(self, model: nn.Module) -> Tensor:
        return self.reading.logits(model, self)


def _is_own(name: str) -> bool:
    return name in ("fold", "questions") or "." in name


def _repeated(tensor: Tensor, copies: int) -> Tensor:
    return tensor.cpu().repeat(copies, *[1] * (tensor.dim() - 1))

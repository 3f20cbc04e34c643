"""Scoring by a sequence-classification head."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from bayeslora.scoring.base import (
    ChoiceBatch,
    ChoiceItem,
    Scoring,
    choice_labels,
    choice_mask,
    forward_options,
    pad_left,
    pad_right,
)
from bayeslora.system.log import logger


class ClassificationBatch(ChoiceBatch):
    """Texts [batch, tokens], and `class_positions` [batch, classes]: which choice of an item each class is.

    A class that an item does not have is at the position behind the last choice.
    """

    def raw_logits(self, model: nn.Module) -> Tensor:
        """The head's logits for the choices of the batch, each item's in its own order."""
        options = forward_options(model, use_cache=False)
        inputs = {"input_ids": self["input_ids"], "attention_mask": self["attention_mask"]}
        logits = model(**inputs, **options).logits
        positions, width = self["class_positions"], self["choice_mask"].shape[1]
        classes = positions.shape[1]
        if logits.shape[-1] < classes:
            raise ValueError(
                f"the model's head has {logits.shape[-1]} classes, but items of this batch have {classes} choices; "
                f"load the model with num_labels={classes}."
            )
        placed = logits.new_zeros(len(logits), width + 1)
        repeated = positions.repeat(len(logits) // len(positions), 1)
        return placed.scatter(1, repeated, logits[:, :classes])[:, :width]


class Classification(Scoring):
    """For encoders, and causal models with a classification head. The choices are the classes, not part of the text.

    Args:
        tokenizer: The model's tokenizer; it needs a padding token.
        max_length: Longest sequence in tokens.
        classes: The texts of the classes, in the head's order. An item's choices are some or all of them, in any order.
            None: class k of the head is choice k of each item, so that no two items may have the same choices in
            different orders.
    """

    name = "classification"
    kind = "sequence_classification"
    shares_trunk = False
    takes_classes = True

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int = 1024, classes: Sequence[str] | None = None
    ):
        # A copy: the caller's tokenizer goes on padding on its own side.
        tokenizer = copy.copy(tokenizer)
        # Behind the text, or positions that are counted from the start would depend on the batch; in front where the
        # head reads the last position, which is where the tokenizer then sets its class token (XLNet).
        tokenizer.padding_side = "left" if tokenizer("a")["input_ids"][-1] == tokenizer.cls_token_id else "right"
        super().__init__(tokenizer, max_length)
        self.classes = None if classes is None else [name.strip() for name in classes]
        self._orders: dict[frozenset[str], tuple[str, ...]] = {}

    def __call__(self, items: Sequence[ChoiceItem]) -> ClassificationBatch:
        """Batch of `items`."""
        room = min(self.max_length, int(self.tokenizer.model_max_length))
        rows = [self.fitted(item, self.encode(self.prompt(item)), room) for item in items]
        pad, left = self.tokenizer.pad_token_id, self.tokenizer.padding_side == "left"
        ids, attention = pad_left(rows, pad)[:2] if left else pad_right(rows, pad)
        return ClassificationBatch(
            input_ids=ids,
            attention_mask=attention,
            choice_mask=choice_mask(items),
            class_positions=self._positions(items),
            **choice_labels(items),
        )

    def encode(self, text: str) -> list[int]:
        """Token ids of a text with all of the tokenizer's special tokens."""
        return list(self.tokenizer(text)["input_ids"])

    def _positions(self, items: Sequence[ChoiceItem]) -> Tensor:
        """Which choice of each item each class is [batch, classes]."""
        width = max(len(item.choices) for item in items)
        rows = torch.full((len(items), width if self.classes is None else len(self.classes)), width)
        for row, item in zip(rows, items, strict=True):
            found = self._as_they_stand(item) if self.classes is None else self._by_text(item, self.classes)
            row[found] = torch.arange(len(found))
        return rows

    def _by_text(self, item: ChoiceItem, classes: list[str]) -> list[int]:
        choices = [choice.strip() for choice in item.choices]
        if not set(choices) <= set(classes):
            raise ValueError(
                f"the classes of this head are {classes}, but item {item.id!r} has the choices {choices}; give it "
                "classes for choices, in any order, or read such items by cloze or letter scoring."
            )
        return [classes.index(choice) for choice in choices]

    def _as_they_stand(self, item: ChoiceItem) -> list[int]:
        choices = tuple(choice.strip() for choice in item.choices)
        order = self._orders.setdefault(frozenset(choices), choices)
        if order != choices:
            raise ValueError(
                f"item {item.id!r} has the choices {list(choices)}, which an item before it had as {list(order)}, so "
                "class k of the head cannot be choice k of both; name the classes in one order, "
                f"Classification(tokenizer, classes={list(order)})."
            )
        if len(self._orders) == 2:
            self._orders[frozenset()] = ()
            logger.warning("items have different choices: class k of the head is choice k of each, whatever its text")
        return list(range(len(choices)))

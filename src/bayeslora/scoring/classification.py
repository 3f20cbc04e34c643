"""Scoring by a sequence-classification head."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import ClassVar

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
)

__all__ = ["Classification", "ClassificationBatch"]


class ClassificationBatch(ChoiceBatch):
    """Texts [batch, tokens]; class k of the head is choice k."""

    def raw_logits(self, model: nn.Module) -> Tensor:
        """The head's logits for the choices of the batch."""
        options = forward_options(model, use_cache=False)
        inputs = {"input_ids": self["input_ids"], "attention_mask": self["attention_mask"]}
        logits = model(**inputs, **options).logits
        width = self["choice_mask"].shape[1]
        if logits.shape[-1] < width:
            raise ValueError(
                f"the model's head has {logits.shape[-1]} classes, but items of this batch have {width} choices; "
                f"load the model with num_labels={width}."
            )
        return logits[:, :width]


class Classification(Scoring):
    """For encoders, and causal models with a classification head. The choices are the classes, not part of the text."""

    name: ClassVar[str] = "classification"
    kind: ClassVar[str] = "sequence_classification"

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int = 1024):
        # A copy: the caller's tokenizer goes on padding and cutting on its own sides.
        tokenizer = copy.copy(tokenizer)
        tokenizer.truncation_side = "left"
        # Behind the text, or positions that are counted from the start would depend on the batch; in front where the
        # head reads the last position, which is where the tokenizer then sets its class token (XLNet).
        tokenizer.padding_side = "left" if tokenizer("a")["input_ids"][-1] == tokenizer.cls_token_id else "right"
        super().__init__(tokenizer, max_length)

    def __call__(self, items: Sequence[ChoiceItem]) -> ClassificationBatch:
        """Batch of `items`."""
        texts = [item.question for item in items]
        encoded = self.tokenizer(texts, padding=True, truncation=True, max_length=self._length(), return_tensors="pt")
        return ClassificationBatch(
            input_ids=encoded["input_ids"],
            attention_mask=torch.as_tensor(encoded["attention_mask"]),
            choice_mask=choice_mask(items),
            **choice_labels(items),
        )

    def _length(self) -> int:
        return min(self.max_length, int(self.tokenizer.model_max_length))

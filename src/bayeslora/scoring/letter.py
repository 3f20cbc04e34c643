"""Letter scoring: the choices stand in the prompt, class logits are the next-token logits of their letters."""

from __future__ import annotations

import string
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
)
from bayeslora.scoring.top_layer import head_of_words, last_positions

REQUEST = "Answer with one letter."
"""What a chat says in place of "Answer:"."""


class LetterBatch(ChoiceBatch):
    """Prompts [batch, tokens] padded on the left, and `class_token_ids` [choices]."""

    def raw_logits(self, model: nn.Module) -> Tensor:
        """Logits of the class tokens at the last position."""
        options = forward_options(model, position_ids=self["position_ids"], logits_to_keep=1, use_cache=False)
        letters = self["class_token_ids"]
        with last_positions(model, 1), head_of_words(model, letters) as chosen:
            logits = model(input_ids=self["input_ids"], attention_mask=self["attention_mask"], **options).logits[:, -1]
        return logits if chosen else logits.index_select(-1, letters)


class Letter(Scoring):
    """The papers' way: needs a model that can answer with a letter."""

    name = "letter"
    templated = True
    templated_by_default = True

    def prompt(self, item: ChoiceItem, question: str | None = None) -> str:
        """Question (another text in its place: `question`), lettered choices, "Answer:"; as a chat, a request."""
        lines = [f"{letter}. {choice}" for letter, choice in zip(string.ascii_uppercase, item.choices, strict=False)]
        listed = "\n".join([f"Question: {item.question if question is None else question}", *lines])
        return f"{listed}\nAnswer:" if self._frame is None else self._frame.prompt(f"{listed}\n{REQUEST}")

    def __call__(self, items: Sequence[ChoiceItem]) -> LetterBatch:
        """Batch of `items`."""
        mask = choice_mask(items)
        if mask.shape[1] > len(string.ascii_uppercase):
            raise ValueError(f"letter scoring has 26 letters, got an item with {mask.shape[1]} choices; use cloze.")
        letters = list(string.ascii_uppercase[: mask.shape[1]])
        rows = [self.fitted(item, self.encode(self.prompt(item)), self.max_length) for item in items]
        ids, attention, positions = pad_left(rows, self.tokenizer.pad_token_id)
        prompt = "Answer:" if self._frame is None else self._frame.prompt(REQUEST)
        classes = torch.tensor(self._class_token_ids(letters, prompt))
        return LetterBatch(
            input_ids=ids,
            attention_mask=attention,
            position_ids=positions,
            lengths=attention.sum(-1),
            class_token_ids=classes,
            choice_mask=mask,
            **choice_labels(items),
        )

    def _class_token_ids(self, letters: Sequence[str], prompt: str) -> list[int]:
        try:
            return class_token_ids(self.tokenizer, letters, prompt, self.separator)
        except ValueError as error:
            if self._frame is None:
                raise
            raise ValueError(
                f"{error} The prompt is the model's chat template; chat_template: false does without."
            ) from error


def class_token_ids(
    tokenizer: PreTrainedTokenizerBase, labels: Sequence[str], prompt: str = "Answer:", separator: str = " "
) -> list[int]:
    """The token that follows `prompt` when the text goes on with `separator` + label, for each label.

    Found by tokenising the whole text, since a label has another id in the middle of a text than alone, and with a
    leading space than without.

    Raises:
        ValueError: A label is more than one token after the prompt, or two labels are the same token.
    """
    context = list(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    ids = []
    for label in labels:
        whole = list(tokenizer(prompt + separator + label, add_special_tokens=False)["input_ids"])
        answer = whole[len(context) :]
        if whole[: len(context)] != context or len(answer) != 1:
            raise ValueError(
                f"label {label!r} must be one token after {prompt!r} + {separator!r}, but this tokenizer gives "
                f"{tokenizer.convert_ids_to_tokens(whole)}; use single-token labels (letters), another separator "
                '(separator=""), or cloze scoring.'
            )
        ids.append(answer[0])
    if len(set(ids)) < len(ids):
        raise ValueError(
            f"labels {list(labels)} are not told apart by this tokenizer: their token ids are {ids}; use other labels."
        )
    return ids

"""Codes of options: labels that are one token after the prompt, so that one forward reads all of them."""

from __future__ import annotations

import string
from collections.abc import Iterator

from transformers import PreTrainedTokenizerBase


class Codes:
    """Labels and the tokens that they are.

    Args:
        labels: A, B, ..., Z, AA, AB, ..., those that are single tokens.
        tokens: Their ids.
    """

    def __init__(self, labels: list[str], tokens: list[int]):
        self.labels, self.tokens = labels, tokens

    def __len__(self) -> int:
        return len(self.labels)

    def check(self, options: int) -> None:
        """Whether there is a code for each of so many options.

        Raises:
            ValueError: There are too few.
        """
        if options > len(self):
            raise ValueError(
                f"a question has {options} options, but this tokenizer has only {len(self)} codes (A, B, ..., ZZ) that "
                "are single tokens; ask for fewer options, take another base model, or fit heads (readout='heads'), "
                "which need no codes."
            )


def single_token_codes(tokenizer: PreTrainedTokenizerBase, prompt: str, separator: str = " ") -> Codes:
    """The codes that a tokenizer has after `prompt` + `separator`, no two of them the same token.

    Args:
        tokenizer: The model's.
        prompt: What stands before the answer; its last words suffice.
        separator: Between it and the answer.
    """
    context = list(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    found: dict[int, str] = {}
    for label in _labels():
        whole = list(tokenizer(prompt + separator + label, add_special_tokens=False)["input_ids"])
        token = whole[len(context) :]
        unknown = token == [tokenizer.unk_token_id]
        if whole[: len(context)] == context and len(token) == 1 and not unknown:
            found.setdefault(token[0], label)
    return Codes(list(found.values()), list(found))


def _labels() -> Iterator[str]:
    letters = string.ascii_uppercase
    yield from letters
    yield from (first + second for first in letters for second in letters)

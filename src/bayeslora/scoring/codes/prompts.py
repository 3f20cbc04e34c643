"""The prompts of typed questions in tokens: a state, and behind it a question in each order of its options."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from bayeslora.scoring.chat import chat_frame
from bayeslora.scoring.codes.template import Template
from bayeslora.scoring.codes.tokens import single_token_codes
from bayeslora.tasks.decisions.questions import Question

KNOWN_QUESTIONS = 1024
"""Questions whose tokens are kept: programs ask the same ones about every state."""

NO_LIMIT = 1 << 30
"""Tokens of a prompt where the model has positions for any."""


class TooLongError(ValueError):
    """A state and a question do not fit into what the model reads; nothing is ever cut.

    Args:
        tokens: Of the prompt.
        room: That can be read.
    """

    def __init__(self, tokens: int, room: int):
        super().__init__(
            f"the state and a question have {tokens} tokens, but the model reads {room}; shorten the state, or ask "
            "about parts of it."
        )
        self.tokens, self.room = tokens, room


class CodePrompts:
    """Writes prompts with codes.

    Args:
        tokenizer: The model's.
        template: The prompt.
        orders: Cyclic rotations of the options in which a question is asked (arXiv 2610.00831); two at most for a noul,
            and no more than there are options.
        max_length: Longest prompt in tokens.
        chat: Whether prompts are put into the tokenizer's chat template; default: if it has one.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        template: Template | None = None,
        orders: int = 1,
        max_length: int = NO_LIMIT,
        chat: bool | None = None,
    ):
        if orders < 1:
            raise ValueError(f"orders must be at least 1, got {orders}.")
        self.tokenizer, self.orders, self.max_length = tokenizer, orders, max_length
        self.template = template or Template()
        chat = bool(tokenizer.chat_template) if chat is None else chat
        self._frame = chat_frame(tokenizer) if chat else None
        separator = " " if self._frame is None else self._frame.separator
        self.codes = single_token_codes(tokenizer, self.end, separator)
        self._rows = lru_cache(KNOWN_QUESTIONS)(self._question_rows)
        self.question_tokens = lru_cache(KNOWN_QUESTIONS)(self._question_tokens)

    def state_tokens(self, state: Any) -> list[int]:
        """Tokens of what all questions about a state share."""
        shown = self.template.show_state(state)
        if self._frame is not None:
            return list(self.tokenizer(self._frame.before + shown, add_special_tokens=False)["input_ids"])
        ids = list(self.tokenizer(shown)["input_ids"])
        end = self.tokenizer.eos_token_id
        return ids[:-1] if len(ids) > 1 and ids[-1] == end else ids

    def prompts(self, state: list[int], question: Question) -> list[list[int]]:
        """Tokens of a question behind those of a state, one row for each order of its options.

        Raises:
            TooLongError: With the state they do not fit.
            ValueError: There are too few codes.
        """
        self.codes.check(len(question.options))
        return self._fitting(state, self._rows(question))

    def prompt(self, state: list[int], question: Question, order: Sequence[int]) -> list[int]:
        """Tokens of a question behind those of a state, with option `order[place]` in each place; errors as above."""
        self.codes.check(len(question.options))
        return self._fitting(state, [self._row(question, order)])[0]

    def without_options(self, state: list[int], question: Question) -> list[int]:
        """Tokens of a question behind those of a state, for heads, which know its options from labels.

        Raises:
            TooLongError: With the state they do not fit.
        """
        return self._fitting(state, [self.question_tokens(question)])[0]

    def _question_tokens(self, question: Question) -> list[int]:
        """Tokens of a question without its options, behind a state."""
        text = self.template.show_question(question, [], []) + self.end
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _fitting(self, state: list[int], rows: list[list[int]]) -> list[list[int]]:
        longest = len(state) + max(map(len, rows))
        if longest > self.max_length:
            raise TooLongError(longest, self.max_length)
        return rows

    def _question_rows(self, question: Question) -> list[list[int]]:
        return [self._row(question, order) for order in rotations(len(question.options), self.orders)]

    def _row(self, question: Question, order: Sequence[int]) -> list[int]:
        text = self.template.show_question(question, self.codes.labels, order) + self.end
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @property
    def in_chat(self) -> bool:
        """Whether prompts are put into a chat template."""
        return self._frame is not None

    @property
    def end(self) -> str:
        """What stands behind a question, before its answer."""
        template = self.template
        return template.answer if self._frame is None else template.request + self._frame.behind


def rotations(options: int, orders: int) -> list[list[int]]:
    """Cyclic rotations of so many options, evenly spread: which option stands in each place.

    >>> rotations(4, 2)
    [[0, 1, 2, 3], [2, 3, 0, 1]]
    """
    count = min(orders, options)
    starts = [options * number // count for number in range(count)]
    return [[(start + place) % options for place in range(options)] for start in starts]

"""Scoring by the texts of options: what questions that vary have in common is that their options can be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from bayeslora.scoring.base import ChoiceItem
from bayeslora.scoring.cloze import ClozeBatch
from bayeslora.scoring.codes.items import DecisionScoring, ranked_weights, typed
from bayeslora.scoring.codes.prompts import TooLongError
from bayeslora.scoring.options import Options
from bayeslora.tasks.decisions.items import DecisionItem
from bayeslora.tasks.decisions.questions import Question


class OptionTexts(DecisionScoring, Options):
    """Reads typed questions as `Options` reads items: each option at its own tokens behind state and question.

    One head answers all questions, those that it has never seen too, with any number of options.
    """

    name: ClassVar[str] = "option_texts"
    templated_by_default: ClassVar[bool] = False

    def __call__(self, items: Sequence[ChoiceItem]) -> ClozeBatch:
        """Batch of `items`.

        Raises:
            TooLongError: A prompt does not fit.
            ValueError: An item is no typed decision.
        """
        asked = [typed(item, self.name) for item in items]
        batch = super().__call__(asked)
        batch["weights"] = torch.tensor([item.weight for item in asked])
        batch.update(ranked_weights(asked, self.ranked))
        return batch

    def rows(self, state: list[int], question: Question) -> list[list[int]]:
        """Tokens of a question behind those of a state, a row for each option behind it.

        Raises:
            TooLongError: With the state they do not fit.
        """
        options = self._options(question)
        asked = self._question(state, question, options)
        return [asked + option for option in options]

    def _encode(self, item: ChoiceItem) -> tuple[list[int], list[list[int]]]:
        own: DecisionItem = typed(item, self.name)
        state, options = self.prompts.state_tokens(own.state), self._options(own.asked)
        return state + self._question(state, own.asked, options), options

    def _question(self, state: list[int], question: Question, options: list[list[int]]) -> list[int]:
        """Tokens of a question behind those of a state, before any of its options."""
        asked, room = self.prompts.without_options(state, question), self.prompts.max_length
        longest = len(state) + len(asked) + max(map(len, options))
        if longest > room:
            raise TooLongError(longest, room)
        return asked

    def _options(self, question: Question) -> list[list[int]]:
        """Tokens of the options, each as it stands behind the prompt."""
        shown = [self.prompts.template.show_option(question, option) for option in question.options]
        texts = [f"{self.separator}{text}" for text in shown]
        return [list(ids) for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]

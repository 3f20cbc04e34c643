"""Whole texts: every target token is predicted, nothing is chosen."""

from __future__ import annotations

from collections.abc import Sequence

from bayeslora.scoring.base import ChoiceBatch, ChoiceItem, Scoring


class Text(Scoring):
    """The scoring of language modelling and instruction tuning; `bayeslora.runs.language_modelling` reads its texts."""

    name = "text"

    def __call__(self, items: Sequence[ChoiceItem]) -> ChoiceBatch:
        """Never: always raises.

        Raises:
            ValueError: Texts have no choices.
        """
        raise ValueError(
            "a run with task.scoring text predicts tokens, not choices: score it with `bayeslora evaluate`, write with "
            "`bayeslora generate`, or train with task.scoring cloze or letter to choose between answers."
        )

"""One multiple-choice question, checked when it is made."""

from __future__ import annotations

import math
from dataclasses import dataclass


class TaskError(ValueError):
    """Data or a task name that cannot be used; the message says what to change."""


class DuplicateChoicesError(TaskError):
    """Two choices of one item read the same, so no answer to it can be scored."""


@dataclass(frozen=True)
class Item:
    """A question, its choices and the index of the right one (None where it is not known).

    Args:
        id: a name that no other item of the task has.
        question: the text before the choices.
        choices: two or more texts that differ.
        label: the index of the right choice.
        group: names what an item shares with others so closely that all must stand on one side of a split: a passage, a
            twin that differs in a word; None where it stands alone.

    Raises:
        TaskError: a field is empty, of the wrong type or out of range.
        DuplicateChoicesError: two choices are the same text.
    """

    id: str
    question: str
    choices: tuple[str, ...]
    label: int | None
    group: str | None = None

    def __post_init__(self) -> None:
        self._check_question()
        self._check_choices()
        self._check_label()

    def _check_question(self) -> None:
        if not isinstance(self.question, str) or not self.question.strip():
            raise self._error("question", "a text that is not empty", self.question, "write the question")

    def _check_choices(self) -> None:
        choices = self.choices
        if not isinstance(choices, tuple) or len(choices) < 2:
            raise self._error("choices", "a tuple of two or more texts", choices, "give at least two choices")
        if not all(isinstance(choice, str) and choice.strip() for choice in choices):
            remedy = "write the empty choice, or leave it out of a list"
            raise self._error("choices", "texts that are not empty", choices, remedy)
        # Surrounding blanks vanish in a prompt, so " yes" and "yes" are one choice to a model.
        if len({choice.strip() for choice in choices}) < len(choices):
            remedy = "reword or remove the repeated choice"
            raise DuplicateChoicesError(self._message("choices", "choices that all differ", choices, remedy))

    def _check_label(self) -> None:
        if self.label is None:
            return
        last = len(self.choices) - 1
        is_index = isinstance(self.label, int) and not isinstance(self.label, bool)
        if not is_index or not 0 <= self.label <= last:
            expected = f"an index from 0 to {last} (or None)"
            raise self._error("label", expected, self.label, "count choices from 0 and correct the label")

    def _error(self, field: str, expected: str, came: object, remedy: str) -> TaskError:
        return TaskError(self._message(field, expected, came, remedy))

    def _message(self, field: str, expected: str, came: object, remedy: str) -> str:
        return f"item {self.id!r}: field '{field}' should be {expected}, but it is {came!r}; {remedy}."


@dataclass(frozen=True)
class SoftItem(Item):
    """An item whose target in training is a distribution over its choices, such as what another model predicts.

    Args:
        label_probabilities: The probability of each choice; they sum to 1. `label` may be known beside it, or None.

    Raises:
        TaskError: As `Item`, or there is no such distribution.
    """

    label_probabilities: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        values = self.label_probabilities
        sound = len(values) == len(self.choices) and all(math.isfinite(value) and value >= 0 for value in values)
        if not sound or abs(math.fsum(values) - 1) > 1e-3:
            expected = f"{len(self.choices)} probabilities that sum to 1"
            raise self._error("label_probabilities", expected, values, "give one for each choice")

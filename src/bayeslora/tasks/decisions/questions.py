"""The typed questions of a decision request: noul (yes or no), choice and score, and how confident an answer is."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from bayeslora.tasks.reading.hints import nearest
from bayeslora.tasks.reading.item import TaskError

MAX_OPTIONS = 255


class QuestionError(TaskError):
    """A question that cannot be asked.

    Args:
        message: What was expected, what came, and the remedy.
        path: Where in the question, such as ("criteria", "a").
    """

    def __init__(self, message: str, path: Sequence[str | int] = ()):
        super().__init__(message)
        self.path = tuple(path)


@dataclass(frozen=True)
class Option:
    """One of the closed set of answers.

    Args:
        key: Its name in answers and labels; of a score the level's index.
        text: What it means, or None where its name says all.
    """

    key: str
    text: str | None = None


@dataclass(frozen=True)
class Question(ABC):
    """A question with a closed set of options. Its id is the caller's and no part of it: no model sees it.

    Args:
        instructions: What is asked; may be empty for a noul whose options have texts.
        options: Two to `MAX_OPTIONS`; of a score lowest first, of a noul true first.
    """

    instructions: str
    options: tuple[Option, ...]
    kind: ClassVar[str]

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the options, in their order."""
        return tuple(option.key for option in self.options)

    @abstractmethod
    def confidence(self, probabilities: Sequence[float]) -> float:
        """How far an answer is from knowing nothing, 0 to 1, of probabilities in the order of the options."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The question as `parse_question` reads it."""


@dataclass(frozen=True)
class Noul(Question):
    """Whether something holds. The options are true and false, in this order."""

    kind: ClassVar[str] = "noul"

    def confidence(self, probabilities: Sequence[float]) -> float:
        """|2 P(true) - 1|, which is the confidence of a choice between two."""
        return abs(2 * probabilities[0] - 1)

    def to_dict(self) -> dict[str, Any]:
        """As `parse_question` reads it."""
        criteria = {option.key: option.text for option in self.options if option.text is not None}
        return {"type": self.kind, "instructions": self.instructions} | ({"criteria": criteria} if criteria else {})


@dataclass(frozen=True)
class Choice(Question):
    """Which one of several named options."""

    kind: ClassVar[str] = "choice"

    def confidence(self, probabilities: Sequence[float]) -> float:
        """(max p - 1/n) / (1 - 1/n)."""
        uniform = 1 / len(probabilities)
        return max(0.0, (max(probabilities) - uniform) / (1 - uniform))

    def to_dict(self) -> dict[str, Any]:
        """As `parse_question` reads it."""
        criteria = {option.key: option.text for option in self.options}
        return {"type": self.kind, "instructions": self.instructions, "criteria": criteria}


@dataclass(frozen=True)
class Score(Question):
    """Which level of an ordered scale. The options' keys are "0", "1", ..."""

    kind: ClassVar[str] = "score"

    def confidence(self, probabilities: Sequence[float]) -> float:
        """max(0, 1 - sum_i p_i |i - mode| / D), D the same sum for uniform probabilities around the middle."""
        mode = max(range(len(probabilities)), key=probabilities.__getitem__)
        around = sum(p * abs(level - mode) for level, p in enumerate(probabilities))
        middle = (len(probabilities) - 1) / 2
        uniform = sum(abs(level - middle) for level in range(len(probabilities))) / len(probabilities)
        return max(0.0, 1 - around / uniform)

    def to_dict(self) -> dict[str, Any]:
        """As `parse_question` reads it."""
        levels = [option.text for option in self.options]
        return {"type": self.kind, "instructions": self.instructions, "criteria": levels}


def text_of(value: Any) -> str:
    """A text as it is, anything else as JSON: how states, instructions and descriptions are shown to a model."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def parse_questions(values: Any) -> dict[str, Question]:
    """The questions of a request by their ids, in its order.

    Raises:
        QuestionError: There is none, or one of them is wrong; its path begins with the id.
    """
    if not isinstance(values, Mapping) or not values:
        raise QuestionError(
            f"questions should be a map of one or more questions by their ids, but it is {shown(values)}; write "
            '{"id": {"type": ..., "instructions": ...}}.'
        )
    questions = {}
    for name, value in values.items():
        try:
            questions[name] = parse_question(value)
        except QuestionError as error:
            raise QuestionError(f"question {name!r}: {error}", (name, *error.path)) from error
    return questions


def parse_question(value: Any) -> Question:
    """A question as a System One request has it, or with its options as a list of {key, description}.

    >>> parse_question({"type": "choice", "instructions": "Which?", "criteria": {"billing": "Refunds", "it": None}})
    Choice(instructions='Which?', options=(Option(key='billing', text='Refunds'), Option(key='it', text=None)))

    Raises:
        QuestionError: It is of an unknown type, has too few or too many options, or two that are the same.
    """
    if not isinstance(value, Mapping):
        raise QuestionError(f'a question should be a map with "type" and "instructions", but it is {shown(value)}.')
    kind = value.get("type")
    if not isinstance(kind, str) or kind not in _PARSERS:
        hint = nearest(str(kind), _PARSERS) if isinstance(kind, str) else ""
        raise QuestionError(
            f"type should be one of {', '.join(_PARSERS)}, but it is {shown(kind)}; {hint}correct it.", ("type",)
        )
    instructions = value.get("instructions")
    asked = "" if instructions is None else text_of(instructions)
    question = _PARSERS[kind](asked, value.get("criteria"))
    if not asked.strip() and not (kind == "noul" and any(option.text for option in question.options)):
        raise QuestionError("instructions should say what is asked, but there are none; write them.", ("instructions",))
    _check_options(question)
    return question


def _noul(instructions: str, criteria: Any) -> Question:
    criteria = {} if criteria is None else criteria
    if not isinstance(criteria, Mapping) or not set(criteria) <= {"true", "false"}:
        raise QuestionError(
            f'criteria of a noul should have texts for "true" and "false" or one of them, but they are '
            f"{shown(criteria)}; correct them, or leave them out.",
            ("criteria",),
        )
    return Noul(instructions, tuple(Option(key, _description(criteria.get(key))) for key in ("true", "false")))


def _choice(instructions: str, criteria: Any) -> Question:
    if isinstance(criteria, Mapping):
        pairs = list(criteria.items())
    elif isinstance(criteria, list) and all(isinstance(one, Mapping) and "key" in one for one in criteria):
        pairs = [(text_of(one["key"]), one.get("description")) for one in criteria]
    elif isinstance(criteria, list) and all(isinstance(one, str) for one in criteria):
        pairs = [(one, None) for one in criteria]
    else:
        raise QuestionError(
            "criteria of a choice should be a map of labels to descriptions (or null), but they are "
            f'{shown(criteria)}; write {{"label": "what it means", ...}}.',
            ("criteria",),
        )
    return Choice(instructions, tuple(Option(key, _description(text)) for key, text in pairs))


def _score(instructions: str, criteria: Any) -> Question:
    if not isinstance(criteria, list):
        raise QuestionError(
            f"criteria of a score should be a list of levels, lowest first, but they are {shown(criteria)}; a map has "
            "no order: write a list.",
            ("criteria",),
        )
    texts = [_level(one) for one in criteria]
    for index, text in enumerate(texts):
        if text is None:
            raise QuestionError("a level of a score should have a text; write it.", ("criteria", index))
    return Score(instructions, tuple(Option(str(index), text) for index, text in enumerate(texts)))


_PARSERS = {"noul": _noul, "choice": _choice, "score": _score}


def _level(value: Any) -> str | None:
    if isinstance(value, Mapping) and set(value) <= {"level", "description"}:
        return _description(value.get("description")) or _description(value.get("level"))
    return _description(value)


def _description(value: Any) -> str | None:
    return None if value is None or value == "" else text_of(value)


def signature(question: Question) -> tuple[Any, ...]:
    """What makes two questions the same: all but their ids and, of a choice, the order of its options."""
    options = tuple((option.key, option.text) for option in question.options)
    if question.kind == "choice":
        options = tuple(sorted(options, key=lambda option: option[0]))
    return (question.kind, question.instructions, options)


def _check_options(question: Question) -> None:
    count = len(question.options)
    if not 2 <= count <= MAX_OPTIONS:
        raise QuestionError(
            f"a {question.kind} should have 2 to {MAX_OPTIONS} options, but it has {count}; "
            + ("one option is no question: add another." if count < 2 else "ask for fewer."),
            ("criteria",),
        )
    if question.kind == "noul":
        return
    shown = [(option.text or "") if question.kind == "score" else option.key for option in question.options]
    seen: dict[str, int] = {}
    for index, name in enumerate(text.strip() for text in shown):
        if not name:
            raise QuestionError("an option should have a name, but one is empty; write it.", ("criteria", index))
        if name in seen:
            raise QuestionError(
                f"options should all differ, but {name!r} is there twice; reword or remove one.", ("criteria", index)
            )
        seen[name] = index


def shown(value: Any) -> str:
    """What came, for an error message: as JSON, and not too long."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 100 else f"{text[:97]}..."

"""What people write for the right answer of a question, as probabilities of its options."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from bayeslora.tasks.decisions.questions import Question, QuestionError, shown
from bayeslora.tasks.reading.hints import nearest

Target = tuple[float, ...]
"""Probabilities in the order of the options; one of them is 1 where the label is hard."""

_HARD = ("label", "choice", "score", "noul", "value", "answer")
_SOFT = ("probabilities", "soft", "target", "targets", "distribution")
_TOLERANCE = 0.02
_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def read_target(question: Question, value: Any) -> Target:
    """The probabilities that a label means.

    A key of a choice, a bool of a noul, the index of a score's level or its text; a map or list of probabilities,
    which are normalised; {label, probabilities}, where the probabilities count; for a noul a number between 0 and 1,
    which is P(true); for a score `{"expected": 1.5}` or a number between two levels, which is shared by these two so
    that the mean is kept.

    >>> from bayeslora.tasks.decisions.questions import parse_question
    >>> read_target(parse_question({"type": "score", "instructions": "How?", "criteria": ["a", "b", "c"]}), 1.25)
    (0.0, 0.75, 0.25)

    Raises:
        QuestionError: It is no label of the question.
    """
    if isinstance(value, Mapping):
        return _from_map(question, value)
    if isinstance(value, list):
        return _normalised(question, value, value)
    if question.kind == "noul":
        return _noul(question, value)
    if question.kind == "score":
        return _score(question, value)
    right = _key(question, value)
    return tuple(float(index == right) for index in range(len(question.options)))


def hard_label(target: Target) -> int:
    """Index of the most probable option; of equals the first."""
    return max(range(len(target)), key=target.__getitem__)


def _from_map(question: Question, value: Mapping[str, Any]) -> Target:
    if set(value) <= set(question.keys) and value:
        return _normalised(question, [value.get(key, 0.0) for key in question.keys], value)
    for name in _SOFT:
        if value.get(name) is not None:
            return read_target(question, value[name])
    if question.kind == "score" and value.get("expected") is not None:
        return _score(question, value["expected"])
    for name in (*_HARD, "expected"):
        if value.get(name) is not None:
            return read_target(question, value[name])
    raise _no_label(question, value)


def _normalised(question: Question, values: list[Any], came: Any) -> Target:
    numbers = [value for value in values if _is_number(value) and 0 <= value <= 1 + _TOLERANCE]
    if len(numbers) < len(values) or len(values) != len(question.options):
        raise _no_label(question, came)
    total = math.fsum(numbers)
    if abs(total - 1) > _TOLERANCE:
        raise QuestionError(f"probabilities should sum to 1, but {shown(came)} sum to {total:g}; correct them.")
    return tuple(value / total for value in numbers)


def _noul(question: Question, value: Any) -> Target:
    if isinstance(value, str):
        value = _BOOLEANS.get(value.strip().lower(), value)
        value = _number(value) if isinstance(value, str) else value
    if isinstance(value, bool) or (_is_number(value) and 0 <= value <= 1):
        return (float(value), 1 - float(value))
    raise _no_label(question, value)


def _score(question: Question, value: Any) -> Target:
    if isinstance(value, str):
        texts = [option.text for option in question.options]
        value = texts.index(value) if value in texts else _number(value)
    last = len(question.options) - 1
    if isinstance(value, bool) or not _is_number(value) or not 0 <= value <= last:
        raise _no_label(question, value)
    below = min(math.floor(value), last - 1)
    target = [0.0] * (last + 1)
    target[below], target[below + 1] = 1 - (value - below), value - below
    return tuple(target)


def _key(question: Question, value: Any) -> int:
    names = [value] if isinstance(value, str) else [json.dumps(value), str(value)]
    for name in names:
        for index, key in enumerate(question.keys):
            if key == name or key.strip() == name.strip():
                return index
    raise _no_label(question, value)


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _no_label(question: Question, value: Any) -> QuestionError:
    last = len(question.options) - 1
    expected = {
        "noul": "true or false, or a probability of true",
        "score": f"the index of a level, 0 to {last}",
        "choice": f"one of {shown(list(question.keys))}",
    }[question.kind]
    hint = nearest(value, question.keys) if isinstance(value, str) and question.kind == "choice" else ""
    return QuestionError(
        f"the label of this {question.kind} should be {expected} (or probabilities of its {last + 1} options), "
        f"but it is {shown(value)}; {hint}correct it, or leave it out."
    )

"""Reads a label that may be an index, a letter or the text of a choice."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence

from .item import TaskError


def is_missing(value: object) -> bool:
    """Return whether a field holds nothing: null, an empty text or not-a-number."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def label_index(value: object, choices: Sequence[str], marks: Sequence[str] | None = None) -> int | None:
    """Return the index a label means, or None where it is missing.

    Where the data mark their choices themselves, such a mark goes before all else. Otherwise a number
    is an index, counted from 0, and a text may be a letter, an index or a choice's exact text; it must
    mean the same by each reading that fits.

    Raises:
        TaskError: the label means no choice, or more than one.
    """
    if is_missing(value):
        return None
    indices = _readings(value, choices, marks)
    if len(indices) == 1 and max(indices) < len(choices) and min(indices) >= 0:
        return indices.pop()
    raise _error(value, choices, marks, ambiguous=len(indices) > 1)


def _readings(value: object, choices: Sequence[str], marks: Sequence[str] | None) -> set[int]:
    text = str(value).strip()
    if marks is not None and text in marks:
        return {marks.index(text)}
    if isinstance(value, int | float) and not isinstance(value, bool):
        # A column with gaps stores its whole numbers as floats.
        return {int(value)} if float(value).is_integer() else set()
    return _text_readings(text, choices)


def _text_readings(text: str, choices: Sequence[str]) -> set[int]:
    found = {index for index, choice in enumerate(choices) if choice.strip() == text}
    if text.isascii() and text.isdigit():
        found.add(int(text))
    if len(text) == 1 and text in string.ascii_letters:
        found.add(string.ascii_letters.index(text) % 26)
    # A reading beyond the last choice is no reading where another one fits: choices "1990" and "2000".
    inside = {index for index in found if index < len(choices)}
    return inside or found


def _error(value: object, choices: Sequence[str], marks: Sequence[str] | None, ambiguous: bool) -> TaskError:
    last = len(choices) - 1
    letters = list(marks) if marks is not None else f"a letter from A to {string.ascii_uppercase[last % 26]}"
    expected = f"an index from 0 to {last}, {letters} or the exact text of one of {list(choices)}"
    if ambiguous:
        return TaskError(
            f"field 'label' should mean one choice, but {value!r} is one choice's text and another's letter "
            f"or index in {list(choices)}; write it as a whole number in a .jsonl or .parquet file."
        )
    return TaskError(f"field 'label' should be {expected}, but it is {value!r}; correct the label.")

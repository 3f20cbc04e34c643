"""Reads a label that may be an index, a letter or the text of a choice.

The rule, for every kind of file. A label is read

- as an index, counted from 0: a whole number, written as 1 or 1.0, in quotes or without;
- as a letter: one letter from A on, small or capital;
- as a text: exactly that of a choice but for blanks around it; numbers by their value, so that 4, 4.0 and "4" are the
  choice "4"; true and false, where a file has them as such, are the choices of these names in any case.

All readings that fit must mean the same choice, and one file cannot hold labels that are texts alone beside labels that
are positions alone: both are errors, which `labels` resolves. A mark that the data give to their choices goes before
all this. Only an empty field, null and not-a-number are no label; "N/A" is a text.
"""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from bayeslora.system.log import logger
from bayeslora.tasks.reading.hints import nearest
from bayeslora.tasks.reading.item import TaskError

LabelKind = Literal["auto", "index", "letter", "text"]

_WHOLE = re.compile(r"[+-]?\d+(\.0+)?", re.ASCII)

_REMEDY = "say what the labels are by the option labels ('text', 'index' or 'letter'; bayeslora train: --task.labels)"


def is_missing(value: object) -> bool:
    """Return whether a field holds nothing: null, an empty text or not-a-number."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


@dataclass
class LabelReader:
    """Reads the labels of one file.

    Args:
        labels: What they are; "auto" tries all ways, which must agree.
        optional: Whether a label that cannot be read is passed over, as if there were none.
        in_file_words: Names the columns in a message as the file does.

    Raises:
        TaskError: `labels` is unknown.
    """

    labels: LabelKind = "auto"
    optional: bool = False
    in_file_words: Callable[[str], str] = str
    place: str = field(default="", init=False)
    """Where in the file the next label stands."""
    unread: list[str] = field(default_factory=list, init=False)
    """Why labels were passed over."""
    _first: dict[frozenset[str], tuple[object, str]] = field(default_factory=dict, init=False)
    """By the ways in which labels were read, the first of them and the choice it was taken for."""

    def __post_init__(self) -> None:
        """Check the name of the way."""
        if self.labels not in get_args(LabelKind):
            raise TaskError(f"labels should be one of {', '.join(get_args(LabelKind))}, but it is {self.labels!r}.")

    def __call__(self, value: object, choices: Sequence[str], marks: Sequence[str] | None = None) -> int | None:
        """Return the index a label means, or None where it is missing.

        Raises:
            TaskError: the label means no choice, or more than one.
        """
        try:
            return None if is_missing(value) else self._index(value, choices, marks)
        except TaskError as error:
            if not self.optional:
                raise
            self.unread.append(f"{self.place}: {self.in_file_words(str(error))}")
            return None

    def finish(self, file: object) -> bool:
        """Check the labels of a whole file against each other, and say in the log what is not plain about them.

        Returns:
            Whether they can be used: optional ones that contradict each other cannot.

        Raises:
            TaskError: they are neither all texts of choices nor all positions, and not optional.
        """
        if self.unread:
            logger.warning(
                "%s: %d labels cannot be read and are passed over; the first: %s",
                file,
                len(self.unread),
                self.unread[0],
            )
        letter = self._first.get(frozenset({"letter"}))
        if letter is not None and self.labels == "auto":
            logger.info("%s: single letters are read as positions, such as the label %r as %r", file, *letter)
        contradiction = self._contradiction()
        if contradiction and not self.optional:
            raise TaskError(f"{file}: {contradiction}")
        if contradiction:
            logger.warning("%s: the labels are passed over: %s", file, contradiction)
        return not contradiction

    def _index(self, value: object, choices: Sequence[str], marks: Sequence[str] | None) -> int:
        found = self._readings(value, choices, marks)
        if not found:
            raise self._unreadable(value, choices, marks)
        if len(set(found.values())) > 1:
            raise _ambiguous(value, choices, found)
        index = next(iter(found.values()))
        self._first.setdefault(frozenset(found), (value, choices[index]))
        return index

    def _contradiction(self) -> str:
        texts = self._first.get(frozenset({"text"}))
        positions = next((first for ways, first in self._first.items() if "text" not in ways), None)
        if texts is None or positions is None:
            return ""
        return (
            f"expected labels that are all texts of choices or all positions, but {texts[0]!r} can only be a text and "
            f"{positions[0]!r} only a position, that of {positions[1]!r}; correct one, or {_REMEDY}."
        )

    def _readings(self, value: object, choices: Sequence[str], marks: Sequence[str] | None) -> dict[str, int]:
        mark = _text(value, marks) if self.labels == "auto" and marks is not None else None
        if mark is not None:
            return {"mark": mark}
        ways = _WAYS if self.labels == "auto" else {self.labels: _WAYS[self.labels]}
        found = {way: index for way, read in ways.items() if (index := read(value, choices)) is not None}
        if self.labels == "auto" and set(found) == {"letter"}:
            # The label A beside the choices "b" and "a": not the text of one, yet not plainly a position either.
            other = _where(choices, lambda choice: choice.strip().lower() == str(value).strip().lower())
            found |= {} if other is None else {"text": other}
        return found

    def _unreadable(self, value: object, choices: Sequence[str], marks: Sequence[str] | None) -> TaskError:
        last = len(choices) - 1
        letters = str(list(marks)) if marks is not None else f"a letter from A to {string.ascii_uppercase[last % 26]}"
        expected = {
            "index": f"an index from 0 to {last}",
            "letter": letters,
            "text": f"the exact text of one of {list(choices)}",
        }
        ways = list(expected.values()) if self.labels == "auto" else [expected[self.labels]]
        joined = " or ".join([", ".join(ways[:-1]), ways[-1]] if len(ways) > 1 else ways)
        return TaskError(f"field 'label' should be {joined}, but it is {value!r}; {_hint(value, choices)}correct it.")


def _ambiguous(value: object, choices: Sequence[str], found: dict[str, int]) -> TaskError:
    meanings = " and ".join(f"the {way} of {choices[index]!r}" for way, index in found.items())
    came = f"{value!r} is {meanings} in {list(choices)} (an index counts from 0)"
    return TaskError(f"field 'label' should mean one choice, but {came}; {_REMEDY}.")


def _hint(value: object, choices: Sequence[str]) -> str:
    if isinstance(value, bool):
        return "true and false are the choices of these names alone: name the choice, or write its index; "
    if _whole(value) == len(choices):
        return "an index counts from 0; "
    if not isinstance(value, str):
        return ""
    if re.sub(r"\W", "", value).lower() in {"", "na", "nan", "none", "null", "unknown"}:
        return "leave the field empty where there is no label; "
    return nearest(value.strip(), choices) if len(value.strip()) > 1 else ""


def _index(value: object, choices: Sequence[str]) -> int | None:
    number = _whole(value)
    return number if number is not None and 0 <= number < len(choices) else None


def _letter(value: object, choices: Sequence[str]) -> int | None:
    text = value.strip() if isinstance(value, str) else ""
    index = string.ascii_letters.index(text) % 26 if len(text) == 1 and text in string.ascii_letters else len(choices)
    return index if index < len(choices) else None


def _text(value: object, choices: Sequence[str]) -> int | None:
    if isinstance(value, bool):
        return _where(choices, lambda choice: choice.strip().lower() == str(value).lower())
    exact = _where(choices, lambda choice: _plain(choice) == _plain(str(value)))
    number = _whole(value)
    return exact if exact is not None or number is None else _where(choices, lambda choice: _whole(choice) == number)


_WAYS: dict[str, Callable[[object, Sequence[str]], int | None]] = {"index": _index, "letter": _letter, "text": _text}


def _where(choices: Sequence[str], fits: Callable[[str], bool]) -> int | None:
    return next((index for index, choice in enumerate(choices) if fits(choice)), None)


def _plain(text: str) -> str:
    # An accent may be a character of its own or part of its letter; both look the same.
    return unicodedata.normalize("NFC", text.strip())


def _whole(value: object) -> int | None:
    """The whole number that a value is; spreadsheets and columns with gaps write 1 as 1.0."""
    if isinstance(value, str):
        return int(value.strip().partition(".")[0]) if _WHOLE.fullmatch(value.strip()) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if isinstance(value, int) or value.is_integer() else None

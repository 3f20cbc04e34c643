"""Turns raw rows into items, also in the layout that many Hub datasets share; says how many could not be used."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bayeslora.tasks.reading.item import DuplicateChoicesError, Item, TaskError

Row = Mapping[str, Any]


class Collector:
    """Parses the rows of one task; the row index runs on over its parts so that made-up ids never repeat."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen = 0
        self.skipped: list[str] = []

    def items(self, parse: Callable[[Row, int], Item], rows: Iterable[Row]) -> list[Item]:
        """Parse each row, setting aside those whose choices repeat.

        Raises:
            TaskError: a row is wrong in another way.
        """
        kept: list[Item] = []
        for row in rows:
            try:
                kept.append(parse(row, self.seen))
            except DuplicateChoicesError as error:
                self.skipped.append(str(error))
            self.seen += 1
        return kept

    def warn_skipped(self) -> None:
        """Warn once with the number of items set aside, if there are any."""
        if self.skipped:
            warnings.warn(
                f"{self.name}: skipped {len(self.skipped)} of {self.seen} public items because two of their "
                f"choices are the same text, for example {self.skipped[0]}",
                stacklevel=3,
            )


def marked_item(row: Row, question: str) -> Item:
    """Read an item whose answerKey is one of the marks in choices["label"]; an empty key means no label.

    Raises:
        TaskError: the answer key is not a mark, or the item is malformed.
    """
    marks = list(row["choices"]["label"])
    answer = row["answerKey"]
    if answer and answer not in marks:
        raise TaskError(
            f"item {row['id']!r}: field 'answerKey' should be one of {marks}, but it is {answer!r}; "
            "correct the row or report it to the data's authors."
        )
    label = marks.index(answer) if answer else None
    return Item(str(row["id"]), question, tuple(row["choices"]["text"]), label)

"""The choices layout many Hub datasets share: texts beside marks such as A, B, C, and an answer mark."""

from __future__ import annotations

from bayeslora.tasks.reading.item import Item, TaskError
from bayeslora.tasks.reading.parse_rows import Row


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

"""Texts to train on: the rows of a local file, split, checked and turned into a dataset that TRL reads."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from bayeslora.runs.config import TaskConfig
from bayeslora.runs.items import drawn
from bayeslora.tasks import LocalFile, TaskError, get_task
from bayeslora.tasks.reading.labels import is_missing
from bayeslora.tasks.reading.local import TEST_FRACTION, files_origin
from bayeslora.tasks.reading.rows import PlacedRow, read_rows
from bayeslora.tasks.reading.split import hashed_split

_KINDS = (("messages",), ("prompt", "completion"), ("text",))
"""The columns of each kind of row; the first kind that a row has counts."""

_ALSO_CALLED = {
    "messages": {"conversation", "conversations", "chat", "dialog", "dialogue", "turns"},
    "prompt": {"question", "query", "instruction", "input", "context", "problem", "user"},
    "completion": {"answer", "response", "output", "target", "reply", "solution", "assistant"},
    "text": {"content", "document", "body", "sentence", "passage"},
}
"""What a column is called in other files."""

_CARRIED = ("tools", "chat_template_kwargs")
"""Columns that TRL hands to the chat template."""


@dataclass(frozen=True)
class TextRow:
    """One text.

    Args:
        id: The row's own, or the file's stem and the row's number.
        values: Its columns: messages; prompt and completion; or text.
        group: Texts of one group stand on one side of a split.
    """

    id: str
    values: dict[str, Any]
    group: str | None = None


@dataclass(frozen=True)
class TextSplits:
    """The texts to fit on, to choose settings on and to report on, where they come from, and how many there were."""

    train: list[TextRow]
    dev: list[TextRow]
    test: list[TextRow]
    origin: str = ""
    available: dict[str, int] = field(default_factory=dict)


def text_splits(config: TaskConfig) -> TextSplits:
    """The splits of a file or folder, cut to the numbers of examples that the config asks for.

    As for items: without a dev file, dev is a fifth of train; without a test file, a fifth of all is set aside first.

    Raises:
        TaskError: A file is missing or a row is wrong, or the task is none of files.
    """
    task = get_task(config.name)
    if not isinstance(task, LocalFile):
        raise TaskError(
            f"task.scoring text reads a data file (or a folder with train.jsonl) with columns {_kinds()}, but "
            f"{config.name!r} is a task of questions with choices; name a file, or use task.scoring cloze or letter."
        )
    rest = read_texts(task.train, config.group_column)
    if task.test is None:
        rest, test = hashed_split(rest, TEST_FRACTION, salt="test")
    else:
        test = read_texts(task.test)
    train, dev = hashed_split(rest) if task.dev is None else (rest, read_texts(task.dev))
    return drawn(TextSplits(train, dev, test, files_origin(task.train, task.dev, task.test)), config)


def read_texts(path: str | Path, group_column: str | None = None) -> list[TextRow]:
    """The texts of a .jsonl, .json, .csv or .parquet file.

    Args:
        path: The file.
        group_column: Holds what keeps texts on one side of a split; empty where a text stands alone.

    Raises:
        TaskError: The file is missing or broken, or a row is none of the known kinds, or of another than the first.
    """
    path = Path(path)
    found: list[TextRow] = []
    for number, row in enumerate(read_rows(path)):
        columns = _columns(path, row)
        if found and not set(columns) <= set(found[0].values):
            first = [name for name in found[0].values if name not in _CARRIED]
            raise TaskError(
                f"{path}, {row.place}: expected {' and '.join(first)} as in the first row, but this row has "
                f"{' and '.join(columns)}; put rows of different kinds in different files."
            )
        values = {name: row.values[name] for name in (*columns, *_CARRIED) if name in row.values}
        if group_column is not None and group_column not in row.values:
            raise TaskError(f"{path}, {row.place}: expected a column {group_column!r} (option group_column).")
        group = row.values.get(group_column or "")
        name = str(row.values.get("id", f"{path.stem}-{number}"))
        found.append(TextRow(name, values, None if is_missing(group) else str(group)))
    return found


def _columns(path: Path, row: PlacedRow) -> tuple[str, ...]:
    """The columns of the row's kind, checked."""
    columns = next((kind for kind in _KINDS if all(name in row.values for name in kind)), None)
    if columns is None:
        names = ", ".join(row.values) or "none"
        raise TaskError(
            f"{path}, {row.place}: expected columns {_kinds()}, but there are {names}; rename them"
            f"{_perhaps(list(row.values))}."
        )
    values = [row.values[name] for name in columns]
    for name, value in zip(columns, values, strict=True):
        expected = "a list of messages" if name == "messages" else "a text that is not empty"
        if not (_is_chat(value) or (name != "messages" and isinstance(value, str) and value)):
            raise TaskError(
                f"{path}, {row.place}: field {name!r} should be {expected}"
                f"{'' if name in ('messages', 'text') else ', or a list of messages'}, but it is {value!r}; a message "
                'is {"role": "user", "content": "..."}.'
            )
    if len({type(value) for value in values}) > 1:
        raise TaskError(f"{path}, {row.place}: prompt and completion should both be texts, or both lists of messages.")
    return columns


def _perhaps(columns: Sequence[str]) -> str:
    """Of the first kind for whose every column there is one that means it, or is nearly called so: which to rename."""
    for kind in _KINDS:
        meant = {name: _meant(name, [column for column in columns if column not in kind]) for name in kind}
        renamed = [f"{meant[name]!r} to {name!r}" for name in kind if name not in columns]
        if all(name in columns or meant[name] for name in kind):
            return f", perhaps {' and '.join(renamed)}"
    return ""


def _meant(name: str, columns: Sequence[str]) -> str | None:
    by_lower = {column.lower(): column for column in columns}
    called = [column for column in by_lower if column in _ALSO_CALLED[name]]
    found = called or difflib.get_close_matches(name, by_lower, n=1, cutoff=0.75)
    return by_lower[found[0]] if found else None


def _is_chat(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(message, dict) and {"role", "content"} <= message.keys() for message in value)
    )


def _kinds() -> str:
    return ", or ".join(" and ".join(kind) for kind in _KINDS)


def text_dataset(rows: Sequence[TextRow], *, chat: bool) -> Dataset:
    """The rows with their ids.

    Args:
        rows: All of one kind.
        chat: Turn a prompt and its completion into what the user and the assistant say, as `bayeslora generate` does
            with a prompt.
    """
    return Dataset.from_list([{"id": row.id, **(_as_chat(row.values) if chat else row.values)} for row in rows])


def _as_chat(values: dict[str, Any]) -> dict[str, Any]:
    roles = {"prompt": "user", "completion": "assistant"}
    return {
        name: [{"role": roles[name], "content": value}] if name in roles and isinstance(value, str) else value
        for name, value in values.items()
    }


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Hold back the progress bars of `datasets`."""
    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()

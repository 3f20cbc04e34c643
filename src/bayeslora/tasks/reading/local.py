"""Tasks and items from files on this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Unpack

from bayeslora.tasks.base import Task
from bayeslora.tasks.reading.columns import Columns, FileLayout
from bayeslora.tasks.reading.item import Item, TaskError
from bayeslora.tasks.reading.labels import LabelReader
from bayeslora.tasks.reading.parse_rows import Row
from bayeslora.tasks.reading.rows import read_rows
from bayeslora.tasks.reading.split import Splits, check_fraction, hashed_split
from bayeslora.tasks.repeats import warn_repeats

TEST_FRACTION = 0.2


def load_items(
    path: str | Path, *, require_label: bool = False, optional_label: bool = False, **layout: Unpack[FileLayout]
) -> list[Item]:
    """Read the items of a .jsonl, .json, .csv or .parquet file.

    Args:
        path: the file.
        require_label: whether an item without a label is an error.
        optional_label: whether the file may lack the label, id and group columns even though they were named, and
            labels that cannot be read are passed over with a word in the log.
        **layout: which columns hold what, and how labels are read (`FileLayout`).

    Raises:
        TaskError: the file, a column or a row is wrong; the message names the line or row.
        TypeError: there is no such option.
    """
    columns = Columns.of(layout, require_label=require_label, optional_label=optional_label)
    return _load(Path(path), columns, Path(path).stem)


class LocalFile(Task):
    """A task from one file, or from one file for each split.

    Without a dev file, dev is a share of train; without a test file, test is 20 % of train, set aside
    first. Both are chosen by the item's group or, where it has none, its id. Every item needs a label.

    Args:
        train: the file to fit on.
        dev: the file to choose settings on.
        test: the file to report on.
        name: the task's name; the train file's stem where there is none.
        **layout: which columns hold what, and how labels are read (`FileLayout`).
    """

    def __init__(
        self,
        train: str | Path,
        dev: str | Path | None = None,
        test: str | Path | None = None,
        *,
        name: str | None = None,
        **layout: Unpack[FileLayout],
    ) -> None:
        self.train = Path(train)
        self.dev = None if dev is None else Path(dev)
        self.test = None if test is None else Path(test)
        self.name = name or self.train.stem
        self.columns = Columns.of(layout, require_label=True)

    def parse(self, row: Row, index: int) -> Item:
        """Read an item from a row of a file.

        Raises:
            TaskError: a field is missing or wrong.
        """
        return self.columns.item(row, f"{self.name}-{index}")

    def splits(self, source: str = "auto", dev_fraction: float = 0.2) -> Splits:
        """Return the train, dev and test items of the files; source has no bearing on them.

        Warns where items of one split stand in an earlier one too.

        Raises:
            TaskError: a file is wrong, a split is empty, or dev_fraction is not in [0, 1).
        """
        check_fraction(dev_fraction)
        rest = _load(self.train, self.columns, self.name)
        if self.test is None:
            rest, test = hashed_split(rest, TEST_FRACTION, salt="test")
        else:
            test = _load(self.test, self.columns, f"{self.name}-test")
        if self.dev is None:
            train, dev = hashed_split(rest, dev_fraction)
        else:
            train, dev = rest, _load(self.dev, self.columns, f"{self.name}-dev")
        _check_not_empty(self, Splits(train, dev, test), dev_fraction)
        splits = Splits(train, dev, test, files_origin(self.train, self.dev, self.test))
        remedy = "remove the repeats, or keep such items together by the option group_column"
        warn_repeats(self.name, splits, remedy, group=self.columns.group or "group")
        return splits


def files_origin(train: Path, dev: Path | None, test: Path | None) -> str:
    """Where the splits of a task of files come from, in words."""
    made = [name for name, path in (("dev", dev), ("test", test)) if path is None]
    given = ", ".join(str(path) for path in (train, dev, test) if path is not None)
    return f"from {given}" + (f"; {' and '.join(made)} set aside from {train.name} by id" if made else "")


def _load(path: Path, columns: Columns, prefix: str) -> list[Item]:
    rows = read_rows(path)
    try:
        columns.check(dict.fromkeys(name for row in rows for name in row.values))
    except TaskError as error:
        raise TaskError(f"{path}: {error}") from error
    read_label = LabelReader(columns.labels, columns.optional_label, columns.in_file_words)
    places: dict[str, str] = {}
    items: list[Item] = []
    for index, row in enumerate(rows):
        read_label.place = row.place
        try:
            item = columns.item(row.values, f"{prefix}-{index}", read_label)
        except TaskError as error:
            raise TaskError(f"{path}, {row.place}: {error}") from error
        if item.id in places:
            raise TaskError(
                f"{path}, {row.place}: field 'id' should be the item's own, but {item.id!r} is also the id "
                f"on {places[item.id]}; change one, or remove the column to have ids made."
            )
        places[item.id] = row.place
        items.append(item)
    return items if read_label.finish(path) else [replace(item, label=None) for item in items]


def _check_not_empty(task: LocalFile, splits: Splits, dev_fraction: float) -> None:
    sizes = {"train": len(splits.train), "dev": len(splits.dev), "test": len(splits.test)}
    may_be_empty = {"dev"} if dev_fraction == 0 else set()
    empty = [part for part, size in sizes.items() if size == 0 and part not in may_be_empty]
    if empty:
        raise TaskError(
            f"{task.train}: expected items in train, dev and test, but {', '.join(empty)} would be empty "
            f"({sizes}); add items, or give a file for each split."
        )

"""The results file of a comparison: one JSON record a line, appended as the work goes on.

Line 1 is the `Header`; then come `Items` (the labels, once for each task and split) and `Cell`s (one trained and
evaluated method with its probabilities for every item). Records are on the disk when `append` returns, so a kill or a
full disk loses at most those that were being written.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from bayeslora.experiments.comparison.growth import grown
from bayeslora.experiments.comparison.records import Cell, Header, Items, Predictions, Stage
from bayeslora.system.files import write_file
from bayeslora.system.folders import sweep

_logger = logging.getLogger(__name__)


class Results:
    """The records of a results file; see `open` for writing and `read` for reading.

    Also a context manager: on leaving, other writers may open the file.
    """

    def __init__(self, path: Path, header: Header, records: Sequence[Items | Cell]):
        self.path, self.header = path, header
        self._items: dict[tuple[str, str], Items] = {}
        self._cells: dict[tuple[str, str, int, float, str], Cell] = {}
        self._file: FileIO | None = None
        self._lock: FileLock | None = None
        for record in records:
            self._check(record)
            self._remember(record)

    @classmethod
    def open(cls, path: str | Path, header: Header, defaults: Mapping[str, Any] | None = None) -> Self:
        """Start the file at `path`, or go on with the one that is there.

        A last line that a kill left unfinished is taken away, and the log says so.

        Args:
            path: The file.
            header: What it would begin with today.
            defaults: The header's config with every option at its default. An option that did not exist when the file
                was made counts as having been at its default.

        Raises:
            RuntimeError: Another process writes to this file.
            ValueError: The file was made under another config, has a newer format, or has a broken line.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RuntimeError(
                f"Another process writes to {path}. Wait until it ends, or choose another output folder."
            ) from error
        try:
            sweep(path.parent)
            results = cls._open_locked(path, header, defaults or {})
        except BaseException:
            lock.release()
            raise
        results._lock = lock
        return results

    @classmethod
    def _open_locked(cls, path: Path, header: Header, defaults: Mapping[str, Any]) -> Self:
        content = path.read_bytes() if path.exists() else b""
        whole = _without_torn_line(content, path)
        if not whole:
            whole = _line(header.to_json(), "header")
        if whole != content:
            write_file(path, whole)
        results = cls._parse(path, whole)
        config = grown(results.header.config, header.config, defaults, path)
        _warn_of_other_versions(results.header, header, path)
        if config != results.header.config:
            results.header = dataclasses.replace(results.header, config=config)
            write_file(path, _line(results.header.to_json(), "header") + whole.partition(b"\n")[2])
        results._file = FileIO(path, "a")
        return results

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """The file as it is now, also while it is written to; a last line that is not finished is left out.

        Raises:
            OSError: There is no such file.
            ValueError: The file is empty, has a newer format, or has a broken line.
        """
        path = Path(path)
        whole = _without_torn_line(path.read_bytes(), path)
        if not whole:
            raise ValueError(f"{path} is empty: expected a results file. Run `bayeslora compare` to write one.")
        return cls._parse(path, whole)

    @classmethod
    def _parse(cls, path: Path, content: bytes) -> Self:
        records = _records(path, content)
        _, first = next(records)
        if first.pop("kind", None) != Header.kind:
            raise ValueError(f"Line 1 of {path} is no header. Is it a results file of `bayeslora compare`?")
        try:
            header = Header.from_json(first)
        except (TypeError, ValueError) as error:
            raise ValueError(f"Line 1 of {path}: {error}") from error
        results = cls(path, header, [])
        for number, record in records:
            kind = record.pop("kind", None)
            if kind not in _KINDS:
                raise ValueError(f"Line {number} of {path}: expected a record of kind items or cell, got {kind!r}.")
            try:
                built = _KINDS[kind].from_json(record)
                results._check(built)
            except (TypeError, ValueError, KeyError, AttributeError) as error:
                raise ValueError(
                    f"Line {number} of {path} is broken ({type(error).__name__}: {error}). Take the line out to lose "
                    "that record alone."
                ) from error
            results._remember(built)
        return results

    def append(self, *records: Items | Cell) -> None:
        """Write records as one; they are on the disk when this returns.

        Items that are there already are not written again. If the write fails, the file stays as it was.

        Raises:
            ValueError: A record contradicts the file: a cell that is there already, items other than those there,
                predictions that do not fit to the items of their split, a number that is not finite; or the results
                were opened for reading. None is written.
            OSError: The disk is full or not writable.
        """
        if self._file is None:
            raise ValueError(f"{self.path} was opened for reading, or is closed. Use Results.open(path, header).")
        for record in records:
            self._check(record)
        fresh = [one for one in records if isinstance(one, Cell) or (one.task, one.split) not in self._items]
        lines = [_line(record.to_json(), _title(record)) for record in fresh]
        _write(self._file, b"".join(lines))
        for record, line in zip(fresh, lines, strict=True):
            # What is remembered is what a reader of the file sees, rounding included.
            content = json.loads(line)
            content.pop("kind")
            self._remember(type(record).from_json(content))

    def close(self) -> None:
        """Let other writers open the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def cells(self, stage: Stage | None = None, task: str | None = None, method: str | None = None) -> list[Cell]:
        """Cells in the order of the file, all or those of a stage, task or method."""
        wanted = {"stage": stage, "task": task, "method": method}
        return [
            cell
            for cell in self._cells.values()
            if all(value is None or getattr(cell, name) == value for name, value in wanted.items())
        ]

    def find(self, task: str, method: str, seed: int, learning_rate: float, stage: Stage) -> Cell | None:
        """The cell with this key, or None if it is still to be computed."""
        return self._cells.get((task, method, seed, learning_rate, stage))

    def items(self, task: str, split: str) -> Items:
        """The items of a split.

        Raises:
            KeyError: The file does not have them.
        """
        if (task, split) not in self._items:
            have = ", ".join(f"{task} {split}" for task, split in self._items) or "none"
            raise KeyError(f"{self.path} has no {split} items of {task}; it has: {have}.")
        return self._items[task, split]

    def splits(self, task: str) -> list[str]:
        """Splits whose items the file has for a task, in the order of the file."""
        return [split for owner, split in self._items if owner == task]

    def tasks(self) -> list[str]:
        """Tasks trained on, in the order of the file."""
        return list(dict.fromkeys(task for task, _ in self._items))

    def methods(self, stage: Stage | None = None, task: str | None = None) -> list[str]:
        """Titles of the rows, in the order of the file."""
        return list(dict.fromkeys(cell.method for cell in self.cells(stage, task)))

    def _check(self, record: Items | Cell) -> None:
        if isinstance(record, Items):
            present = self._items.get((record.task, record.split))
            if present is not None and present != record:
                raise ValueError(
                    f"The {record.split} items of {record.task} are not those that the file has already: the data has "
                    "changed. Choose another output folder."
                )
            return
        if record.key in self._cells:
            raise ValueError(
                f"There is a cell {_title(record)} already. Look with Results.find before you compute one."
            )
        for split, predictions in record.predictions.items():
            if (record.task, split) not in self._items:
                raise ValueError(f"Cell {_title(record)}: append the {split} items of {record.task} before the cell.")
            _check_fit(predictions, self._items[record.task, split], record)

    def _remember(self, record: Items | Cell) -> None:
        if isinstance(record, Items):
            self._items[record.task, record.split] = record
        else:
            self._cells[record.key] = record


_KINDS: dict[str, type[Items] | type[Cell]] = {Items.kind: Items, Cell.kind: Cell}


def _title(record: Items | Cell) -> str:
    if isinstance(record, Items):
        return f"{record.task}, {record.split}"
    return f"{record.task}, {record.method}, seed {record.seed}, learning rate {record.learning_rate}, {record.stage}"


def _write(file: FileIO, content: bytes) -> None:
    """All of `content` at the end of the file and on the disk, or nothing of it."""
    end = os.fstat(file.fileno()).st_size
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
    except BaseException:
        file.truncate(end)
        raise


def _line(record: dict[str, Any], title: str) -> bytes:
    try:
        return json.dumps(record, allow_nan=False, ensure_ascii=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"{title} cannot be written as JSON: {error}.") from error


def _without_torn_line(content: bytes, path: Path) -> bytes:
    """The whole lines of a file, each with its line end.

    A line is written at once, so a kill leaves a line without its end. A JSON object whose closing brace is there is
    whole all the same; it only lacks the line end.
    """
    end = content.rfind(b"\n") + 1
    last = content[end:]
    if not last:
        return content
    try:
        json.loads(last)
    except ValueError:
        _logger.warning(
            "The last line of %s (%d bytes) is not finished and is left out: it was being written when the run was "
            "killed, or is being written now.",
            path,
            len(last),
        )
        return content[:end]
    return content + b"\n"


def _records(path: Path, content: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number, from 1, and record of each line."""
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(
                f"Line {number} of {path} is broken: {error}. Take the line out to lose that record alone."
            ) from error
        if not isinstance(record, dict):
            raise ValueError(f"Line {number} of {path}: expected a JSON object, got {line[:60].decode()!r}.")
        yield number, record


def _check_fit(predictions: Predictions, items: Items, cell: Cell) -> None:
    found = [len(row) for row in predictions.probabilities]
    if found != items.choices or len(predictions.mutual_information) != len(items):
        raise ValueError(
            f"Cell {_title(cell)}: expected for each of the {len(items)} {items.split} items one probability a choice "
            f"and one mutual information, got {len(found)} rows and {len(predictions.mutual_information)} numbers; "
            f"lengths of the first rows {found[:5]}, numbers of choices {items.choices[:5]}."
        )


def _warn_of_other_versions(present: Header, wanted: Header, path: Path) -> None:
    before = present.versions | {"bayeslora": present.bayeslora, "device": present.device}
    now = wanted.versions | {"bayeslora": wanted.bayeslora, "device": wanted.device}
    changed = [f"{name} {before.get(name)} -> {now[name]}" for name in now if before.get(name) != now[name]]
    if changed:
        _logger.warning("%s was started under other versions (%s); its rows now mix both.", path, ", ".join(changed))

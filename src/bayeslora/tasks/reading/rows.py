"""Reads the rows of a local data file, each with the place to name when it is wrong."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bayeslora.tasks.reading.hints import nearest
from bayeslora.tasks.reading.item import TaskError
from bayeslora.tasks.reading.unique_keys import read_json_text


@dataclass(frozen=True)
class PlacedRow:
    """A row's values and where they stand, such as "line 3"."""

    place: str
    values: dict[str, Any]


def read_rows(path: Path) -> list[PlacedRow]:
    """Read every row of a .jsonl, .json, .csv or .parquet file.

    Raises:
        TaskError: the file is missing, of an unknown kind, empty or malformed.
    """
    rows = list(_rows(path))
    if not rows:
        raise TaskError(f"{path}: expected at least one item, but the file is empty; add items to it.")
    return rows


def first_row(path: Path) -> PlacedRow | None:
    """The first row, None of an empty file; what stands behind it is not read where the kind of file allows that.

    Raises:
        TaskError: The file is missing, of an unknown kind or malformed as far as it is read.
    """
    return next(_rows(path), None)


def check_there(path: str | Path) -> None:
    """Whether there is something at the path of a data file: for commands that load a model before they read it.

    Raises:
        TaskError: There is nothing.
    """
    if not Path(path).exists():
        raise _missing(path)


def _missing(path: str | Path) -> TaskError:
    return TaskError(f"{path}: expected a data file, but there is none; correct the path.")


def _rows(path: Path) -> Iterator[PlacedRow]:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        hint = nearest(path.suffix, READERS)
        raise TaskError(
            f"{path}: a data file should end in {', '.join(READERS)}, but this ends in {path.suffix!r}; "
            f"{hint}convert or rename the file."
        )
    if not path.is_file():
        raise _missing(path)
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: expected UTF-8 text, but {error}; save the file as UTF-8.") from error


def _jsonl_rows(path: Path) -> Iterator[PlacedRow]:
    # utf-8-sig also reads files that spreadsheet programs start with a byte order mark.
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield PlacedRow(f"line {number}", _json_object(path, number, line))


def _json_object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        values = read_json_text(line)
    except TaskError as error:
        raise TaskError(f"{path}, line {number}: {error}") from error
    except json.JSONDecodeError as error:
        raise TaskError(
            f"{path}, line {number}: expected one JSON object, but the line is not valid JSON ({error.msg}, "
            f"column {error.colno}); correct this line. The other lines are untouched."
        ) from error
    return _object(f"{path}, line {number}", values)


def _object(where: str, values: object) -> dict[str, Any]:
    if isinstance(values, dict):
        return values
    raise TaskError(
        f"{where}: expected a JSON object, but it holds {type(values).__name__}; "
        'write {"question": ..., "choices": [...], "label": ...}.'
    )


def _json_rows(path: Path) -> Iterator[PlacedRow]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        rows = read_json_text(text) if text.strip() else []
    except TaskError as error:
        raise TaskError(f"{path}: {error}") from error
    except json.JSONDecodeError as error:
        raise TaskError(
            f"{path}, line {error.lineno}: expected a JSON list of objects, but the file is not valid JSON "
            f"({error.msg}); correct it, or name it .jsonl if it has one object on each line."
        ) from error
    if not isinstance(rows, list):
        raise TaskError(
            f"{path}: expected a JSON list of objects, but it holds {type(rows).__name__}; put the items in one list."
        )
    for number, values in enumerate(rows, 1):
        yield PlacedRow(f"row {number}", _object(f"{path}, row {number}", values))


def _csv_rows(path: Path) -> Iterator[PlacedRow]:
    # pandas would read a choice such as "None" or "NA" as missing; csv keeps every text as written.
    with path.open(encoding="utf-8-sig", newline="") as lines, _long_fields():
        reader = csv.reader(lines, strict=True)
        first = 1
        try:
            header = _csv_header(path, next(reader, []))
            first = reader.line_num + 1
            for values in reader:
                if values:
                    fields = _csv_fields(path, reader.line_num, header, values)
                    yield PlacedRow(f"line {reader.line_num}", fields)
                first = reader.line_num + 1
        except csv.Error as error:
            # A quote that is never closed is noticed at the end of the file: the row's first line is where to look.
            raise TaskError(
                f"{path}, line {first}: expected comma-separated values, but {error}; check the quotes on this line."
            ) from error


@contextmanager
def _long_fields() -> Iterator[None]:
    """csv's bound on a field, which is one for the whole process, lifted while a file is read: passages are longer."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _csv_header(path: Path, header: list[str]) -> list[str]:
    if len(set(header)) < len(header):
        raise TaskError(
            f"{path}, line 1: expected column names that all differ, but they are {header}; "
            "rename or remove the repeated column."
        )
    if separators := [each for each in ";\t" if len(header) == 1 and each in header[0]]:
        raise TaskError(
            f"{path}, line 1: expected column names with commas between them, but there is {separators[0]!r} between "
            "them; save the file with commas."
        )
    return header


def _csv_fields(path: Path, number: int, header: list[str], values: list[str]) -> dict[str, Any]:
    if len(values) != len(header):
        raise TaskError(
            f"{path}, line {number}: expected {len(header)} fields as in the header, but there are "
            f"{len(values)}; put double quotes round a field that holds a comma."
        )
    return dict(zip(header, values, strict=True))


def _parquet_rows(path: Path) -> Iterator[PlacedRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise TaskError(f"{path}: expected a Parquet file, but {error}; write the file again.") from error
    for number, values in enumerate(rows, 1):
        yield PlacedRow(f"row {number}", values)


READERS: dict[str, Callable[[Path], Iterator[PlacedRow]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}

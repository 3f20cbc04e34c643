"""The results file of a comparison: one JSON record a line, appended as the work goes on.

Line 1 is the `Header`; then come `Items` (the labels, once for each task and split) and `Cell`s (one trained and
evaluated method with its probabilities for every item). Each record is on the disk when `append` returns, so a kill or
a full disk loses at most the record that was being written.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy
from filelock import FileLock, Timeout

from bayeslora.comparison.growth import grown
from bayeslora.saving import atomic_file

if TYPE_CHECKING:
    # The command line reads this file's folder at its start; the metrics' libraries take seconds to import.
    from bayeslora.metrics import Array

__all__ = ["FORMAT_VERSION", "Cell", "Header", "Items", "Predictions", "Results", "Stage"]

FORMAT_VERSION = 1

Stage = Literal["selection", "final"]
"""What a cell is for: choosing a learning rate on the dev split, or the comparison itself."""

_PACKAGES = ("torch", "transformers", "peft", "numpy")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Header:
    """How the whole file was made.

    Attributes:
        config: Everything that defines the comparison, as JSON. A file is only ever appended to under the same config.
        device: The device in words, for example "cuda: NVIDIA H100" or "cpu: 2 threads".
        bayeslora: Version of bayeslora that started the file.
        versions: Versions of Python and of the libraries that the numbers depend on.
        created: ISO 8601 time in UTC.
        format_version: Version of the format of the file.
    """

    kind: ClassVar[str] = "header"
    config: dict[str, Any]
    device: str
    bayeslora: str
    versions: dict[str, str]
    created: str
    format_version: int = FORMAT_VERSION

    @classmethod
    def now(cls, config: Mapping[str, Any], device: str) -> Self:
        """The header of a file started by this process, with its versions."""
        return cls(
            config=dict(config),
            device=device,
            bayeslora=_version("bayeslora"),
            versions={"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def to_json(self) -> dict[str, Any]:
        """The record of the file."""
        return {"kind": self.kind, "format_version": self.format_version} | dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """The header of a record.

        Raises:
            ValueError: The file has a newer format than this bayeslora knows.
        """
        found = record.get("format_version")
        if not isinstance(found, int) or found > FORMAT_VERSION:
            raise ValueError(
                f"Expected format_version {FORMAT_VERSION} or older, got {found!r}: the file was written by bayeslora "
                f"{record.get('bayeslora')}, this is {_version('bayeslora')}. Install a newer bayeslora to read it."
            )
        return cls(**record)


@dataclass(frozen=True, kw_only=True)
class Items:
    """What one split of a task asks: the identity, label and number of choices of each item.

    Attributes:
        task: The task trained on.
        split: "dev", "test", or "ood:<name of another task>".
        ids: Identity of each item.
        labels: Index of the right choice of each item; None where the labels of the split do not mean the same as those
            trained on (out-of-distribution items of another label set).
        choices: Number of choices of each item.
    """

    kind: ClassVar[str] = "items"
    task: str
    split: str
    ids: list[str]
    labels: list[int] | None
    choices: list[int]

    def __post_init__(self) -> None:
        lengths = {"ids": len(self.ids), "choices": len(self.choices)}
        if self.labels is not None:
            lengths["labels"] = len(self.labels)
        if len(set(lengths.values())) != 1 or not self.ids:
            raise ValueError(
                f"Expected an equal number of ids, labels and choices, at least one, for the {self.split} items of "
                f"{self.task}, got {lengths}."
            )
        for index, label in enumerate(self.labels or ()):
            if not 0 <= label < self.choices[index]:
                raise ValueError(
                    f"Item {self.ids[index]!r} ({self.task}, {self.split}) has {self.choices[index]} choices, but "
                    f"label {label}. Give the index of the right choice, from 0."
                )

    def __len__(self) -> int:
        return len(self.ids)

    def label_array(self) -> numpy.ndarray:
        """Labels [items], int64.

        Raises:
            ValueError: The split has no labels.
        """
        if self.labels is None:
            raise ValueError(f"The {self.split} items of {self.task} have no labels. Ask only for entropies here.")
        return numpy.asarray(self.labels, dtype=numpy.int64)

    def choice_mask(self) -> numpy.ndarray:
        """True where an item has that choice [items, choices]."""
        return numpy.arange(max(self.choices)) < numpy.asarray(self.choices)[:, None]

    def to_json(self) -> dict[str, Any]:
        """The record of the file."""
        return {"kind": self.kind} | dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """The items of a record."""
        return cls(**record)


@dataclass(frozen=True)
class Predictions:
    """Predictive distributions of the items of a split, in the order of its `Items`.

    Attributes:
        probabilities: For each item one number for each choice it has.
        mutual_information: Epistemic part of the predictive entropy of each item, nats; zeros without draws.
    """

    probabilities: list[list[float]]
    mutual_information: list[float]

    @classmethod
    def from_arrays(cls, probabilities: Array, mutual_information: Array, choices: Sequence[int]) -> Self:
        """From padded probabilities [items, choices], mutual information [items] and each item's number of choices."""
        rows = [row[:count] for row, count in zip(probabilities.tolist(), choices, strict=True)]
        return cls(rows, mutual_information.tolist())

    def __len__(self) -> int:
        return len(self.probabilities)

    def padded(self) -> numpy.ndarray:
        """Probabilities [items, choices], float64; 0 for choices that an item does not have."""
        padded = numpy.zeros((len(self), max(map(len, self.probabilities))))
        for row, probabilities in zip(padded, self.probabilities, strict=True):
            row[: len(probabilities)] = probabilities
        return padded

    def normalised(self) -> numpy.ndarray:
        """`padded`, with rows that sum to 1 again: the file keeps 6 digits."""
        padded = self.padded()
        return padded / padded.sum(1, keepdims=True)

    def to_json(self) -> dict[str, Any]:
        """The record of the file: 6 significant digits."""
        return {
            "probabilities": [_rounded(row) for row in self.probabilities],
            "mutual_information": _rounded(self.mutual_information),
        }


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One method on one task with one seed and learning rate: what it cost and what it predicts.

    Attributes:
        task: The task trained on.
        method: Title of the row in the tables, for example "lora" or "lora + temperature".
        seed: Seed of initialisation, data order and draws.
        learning_rate: Peak learning rate of the training.
        stage: "selection" or "final".
        num_samples: Posterior draws of a prediction; 0 for a deterministic one.
        train_seconds: Training alone.
        predict_seconds: Prediction of `predict_items` items, all draws included.
        deterministic_seconds: One deterministic pass over the same items; None where it was not measured.
        predict_items: How many items the two were measured on; None where that is not known.
        peak_memory_bytes: Peak memory of the training; None where it was not measured.
        trainable_parameters: Numbers that the training changes.
        extra_parameters: Numbers that the saved adapter has beyond those of LoRA.
        derived_from: The row that this one was computed from (temperature scaling), or None.
        details: What else the method found or used, for example {"temperature": 1.7}.
        history: Training log: step, nll and kl (nats).
        predictions: For each split its predictions.
    """

    kind: ClassVar[str] = "cell"
    task: str
    method: str
    seed: int
    learning_rate: float
    stage: Stage
    num_samples: int
    train_seconds: float
    predict_seconds: float
    deterministic_seconds: float | None = None
    predict_items: int | None = None
    peak_memory_bytes: int | None = None
    trainable_parameters: int
    extra_parameters: int = 0
    derived_from: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    predictions: dict[str, Predictions] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, int, float, str]:
        """What makes a cell the same as another: task, method, seed, learning rate and stage."""
        return self.task, self.method, self.seed, self.learning_rate, self.stage

    def to_json(self) -> dict[str, Any]:
        """The record of the file."""
        fields = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        predictions = {split: predictions.to_json() for split, predictions in self.predictions.items()}
        return {"kind": self.kind} | fields | {"predictions": predictions}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """The cell of a record."""
        predictions = {split: Predictions(**content) for split, content in record["predictions"].items()}
        return cls(**record | {"predictions": predictions})


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
            with atomic_file(path) as aside:
                aside.write_bytes(whole)
        results = cls._parse(path, whole)
        config = grown(results.header.config, header.config, defaults, path)
        _warn_of_other_versions(results.header, header, path)
        if config != results.header.config:
            results.header = dataclasses.replace(results.header, config=config)
            with atomic_file(path) as aside:
                aside.write_bytes(_line(results.header.to_json(), "header") + whole.partition(b"\n")[2])
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

    def append(self, record: Items | Cell) -> None:
        """Write one record; it is on the disk when this returns.

        Items that are there already are not written again. If the write fails, the file stays as it was.

        Raises:
            ValueError: The record contradicts the file: a cell that is there already, items other than those there,
                predictions that do not fit to the items of their split, a number that is not finite; or the results
                were opened for reading.
            OSError: The disk is full or not writable.
        """
        if self._file is None:
            raise ValueError(f"{self.path} was opened for reading, or is closed. Use Results.open(path, header).")
        self._check(record)
        if isinstance(record, Items) and (record.task, record.split) in self._items:
            return
        line = _line(record.to_json(), _title(record))
        end = os.fstat(self._file.fileno()).st_size
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except BaseException:
            self._file.truncate(end)
            raise
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


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _rounded(numbers: Sequence[float]) -> list[float]:
    return [float(f"{number:.6g}") for number in numbers]


def _title(record: Items | Cell) -> str:
    if isinstance(record, Items):
        return f"{record.task}, {record.split}"
    return f"{record.task}, {record.method}, seed {record.seed}, learning rate {record.learning_rate}, {record.stage}"


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

"""The records of a comparison's results file: its header, the items, the cells."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy

from bayeslora.options.ranges import check_options

if TYPE_CHECKING:
    # The command line reads this file's folder at its start; the metrics' libraries take seconds to import.
    from bayeslora.metrics import Array

FORMAT_VERSION = 1

BASE = "base"
"""Title of the row without any training."""

TEMPERED = " + temperature"
"""What a row's title has behind it where its predictions have a temperature."""


def control_title(title: str, control: str) -> str:
    """The title of a control of the row called `title`: "lora", "one_pass" give "lora, one pass"."""
    return f"{title}, {control.replace('_', ' ')}"


Stage = Literal["selection", "final"]
"""What a cell is for: choosing a learning rate on the dev split, or the comparison itself."""

_PACKAGES = ("torch", "transformers", "peft", "numpy")


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
            ValueError: The file has a newer format than this bayeslora knows, or the header is not whole.
        """
        found = record.get("format_version")
        if not isinstance(found, int) or found > FORMAT_VERSION:
            raise ValueError(
                f"Expected format_version {FORMAT_VERSION} or older, got {found!r}: the file was written by bayeslora "
                f"{record.get('bayeslora')}, this is {_version('bayeslora')}. Install a newer bayeslora to read it."
            )
        try:
            header = cls(**record)
        except TypeError as error:
            raise ValueError(f"the header is not whole: {str(error).partition(') ')[2] or error}.") from error
        check_options(header, "header")
        return header


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
        num_samples: Posterior draws of a prediction; 0 for a deterministic one; the mean over the test items where they
            have different numbers.
        train_seconds: Training alone.
        predict_seconds: Prediction of `predict_items` items, all draws included.
        deterministic_seconds: One deterministic pass over the same items; None where it was not measured.
        predict_items: How many items the two were measured on; None where that is not known.
        peak_memory_bytes: Peak memory of the training; None where it was not measured.
        trainable_parameters: Numbers that the training changes.
        extra_parameters: Numbers that the saved adapter has beyond those of LoRA.
        derived_from: The row that this one was computed from (temperature scaling), or None.
        details: What else the method found or used, for example {"temperature": 1.7}; beside it its standard error.
        history: Training log: step, nll and kl (nats).
        predictions: For each split its predictions.
    """

    kind: ClassVar[str] = "cell"
    task: str
    method: str
    seed: int
    learning_rate: float
    stage: Stage
    num_samples: float
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
    def key(self) -> tuple[str, str, int, float, Stage]:
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


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _rounded(numbers: Sequence[float]) -> list[float]:
    return [float(f"{number:.6g}") for number in numbers]

"""What an executor is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    from bayeslora.experiments.comparison.cells import Outcome
    from bayeslora.experiments.comparison.config import CompareConfig
    from bayeslora.experiments.comparison.items import ComparedItems
    from bayeslora.experiments.comparison.planned_cells import PlannedCell


class Executor(ABC):
    """Computes cells somewhere; a context manager that lets go of what it holds.

    Args:
        config: The comparison.
        output: Its folder.
        items: What is trained on and predicted.

    Attributes:
        name: What `--executor` calls it.
        options: Its further arguments, each with its default and what it means: `--<name>_<argument>`.
    """

    name: ClassVar[str]
    options: ClassVar[Mapping[str, tuple[Any, str]]] = {}

    @abstractmethod
    def __init__(self, config: CompareConfig, output: Path, items: ComparedItems):
        """Be ready for planned cells."""

    @property
    @abstractmethod
    def device(self) -> str:
        """What computes, in words, for the header of the results file."""

    @property
    @abstractmethod
    def slots(self) -> int:
        """How many planned cells to submit before one has ended, at least 1."""

    @abstractmethod
    def submit(self, planned: PlannedCell) -> None:
        """Ask for a planned cell whose learning rate is known."""

    @abstractmethod
    def next(self) -> Outcome:
        """Wait for one of the submitted planned cells to end."""

    @abstractmethod
    def close(self) -> None:
        """Drop what has not ended."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

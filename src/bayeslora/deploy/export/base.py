"""What a format of an export is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bayeslora.deploy.export.folder import Dtype
from bayeslora.runs import Run


@dataclass(frozen=True)
class ExportRequest:
    """What is to be exported, and how.

    Attributes:
        run: The run, loaded.
        output_dir: Folder to write (`bayeslora.deploy.export.folder.export_folder`).
        seed: Seed of the draws.
        dtype: Number type of the files.
        num_samples: Draws; None: the format's default.
        draw: Number of one draw; None: the mean.
        details: What to note in export.json.
    """

    run: Run
    output_dir: str | Path
    seed: int
    dtype: Dtype
    num_samples: int | None
    draw: int | None
    details: dict[str, Any]


class ExportFormat(ABC):
    """A way to write a run for other programs."""

    name: ClassVar[str]
    options: ClassVar[tuple[str, ...]] = ()
    """Which of `num_samples` and `draw` it takes."""
    use: ClassVar[str] = ""
    """What to do with the folder, in a line for a person."""

    @abstractmethod
    def write(self, request: ExportRequest) -> dict[str, Any]:
        """Write the folder, whole or not at all; returns what its export.json holds.

        Raises:
            ValueError: The run cannot be exported that way.
        """

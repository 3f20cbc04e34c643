"""The folder of an export, and the file in it that says what it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from bayeslora.system.files import atomic_folder, write_json
from bayeslora.system.log import logger

Dtype = Literal["float32", "bfloat16", "float16"]

RECORD = "export.json"
"""Name of the file in an export that says what it is."""


def check_output(folder: str | Path) -> None:
    """Whether an export may be written there.

    Raises:
        FileExistsError: It holds something that is no export.
    """
    folder = Path(folder)
    if not folder.exists() or (folder / RECORD).is_file() or (folder.is_dir() and not any(folder.iterdir())):
        return
    raise FileExistsError(
        f"{folder} is not empty and no export (it has no {RECORD}), so it is left alone; name another folder, or "
        "remove it first. Only an earlier export is overwritten, whole."
    )


@contextmanager
def export_folder(path: str | Path) -> Iterator[Path]:
    """A folder to write to; it takes the place of `path` only if the block ends well.

    Raises:
        FileExistsError: As `check_output`.
    """
    check_output(path)
    with atomic_folder(path) as aside:
        yield aside


def write_record(folder: Path, facts: Mapping[str, Any], warnings: Sequence[str]) -> dict[str, Any]:
    """Write export.json and log the warnings; returns what the file holds."""
    from bayeslora import __version__

    for warning in warnings:
        logger.warning("%s", warning)
    record = {**facts, "version": __version__, "warnings": list(warnings)}
    write_json(folder / RECORD, record)
    return record

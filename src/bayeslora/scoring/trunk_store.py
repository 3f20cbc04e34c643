"""Where the trunk cache keeps its rows: in memory, or in memory-mapped files that processes share."""

from __future__ import annotations

import os
import uuid
import zlib
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Protocol

import safetensors.torch
import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bayeslora.system.files import write_file
from bayeslora.system.log import logger

_SUFFIX = ".safetensors"
_LOCK_SECONDS = 60.0


class Store(Protocol):
    """Rows [tokens, hidden] by key; what is added is never changed, and may be refused."""

    @property
    def size(self) -> int:
        """Bytes held."""

    def __len__(self) -> int:
        """Rows held."""

    def get(self, keys: Sequence[str]) -> list[Tensor] | None:
        """The rows of all keys, on the CPU; None where one is missing."""

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Keep a copy of those of `rows` that are not here, or of none where they do not fit."""


class MemoryStore:
    """Rows in the memory of this process.

    Args:
        limit: Bytes beyond which nothing is added.
    """

    def __init__(self, limit: int):
        self.limit, self.size = limit, 0
        self._rows: dict[str, Tensor] = {}
        self._stopped = False

    def __len__(self) -> int:
        """Rows held."""
        return len(self._rows)

    def get(self, keys: Sequence[str]) -> list[Tensor] | None:
        """The rows of all keys; None where one is missing."""
        found = [self._rows[key] for key in keys if key in self._rows]
        return found if len(found) == len(keys) else None

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Keep a copy of the new rows, all or none."""
        if self._stopped:
            return
        new = {key: row for key, row in rows.items() if key not in self._rows}
        added = sum(row.nbytes for row in new.values())
        if self.size + added > self.limit:
            self._stopped = True
            logger.info("trunk cache: the limit of %d bytes is reached; no further items are kept", self.limit)
            return
        self._rows |= {key: _copy(row) for key, row in new.items()}
        self.size += added


class DiskStore:
    """Rows in a folder of safetensors files, one file for each `add`, read through memory mapping.

    Several processes may read and write the folder at the same time: a file appears whole or not at all, and writers
    take turns. A checksum goes with each row; a file that fails it, or is cut off, is taken away and its rows are
    missing. If the folder cannot be written (a full disk), a warning is logged once and nothing more is added.

    Args:
        folder: For the rows of one trunk alone; it is made with the first row.
        limit: Bytes of the files in the folder, whoever wrote them, beyond which nothing is added.

    Raises:
        NotADirectoryError: There is a file at `folder`.
    """

    def __init__(self, folder: str | Path, limit: int):
        self.folder, self.limit = Path(folder), limit
        self._files: dict[str, int] = {}
        """Bytes of each known file."""
        self._places: dict[str, str] = {}
        """The file of each key."""
        self._stopped = self._swept = False
        self._refresh()

    @property
    def size(self) -> int:
        """Bytes of the files."""
        return sum(self._files.values())

    def __len__(self) -> int:
        """Rows held, those of other processes included as far as they have been seen."""
        return len(self._places)

    # --- reading ---------------------------------------------------------------------------------------------------

    def get(self, keys: Sequence[str]) -> list[Tensor] | None:
        """The rows of all keys; None where one is missing or broken."""
        if any(key not in self._places for key in keys):
            self._refresh()
        if any(key not in self._places for key in keys):
            return None
        rows = [row for key in keys if (row := self._read(key)) is not None]
        return rows if len(rows) == len(keys) else None

    def _read(self, key: str) -> Tensor | None:
        name = self._places.get(key)
        if name is None:
            return None
        try:
            with safe_open(self.folder / name, "pt") as file:
                row: Tensor = file.get_tensor(key)
                if (file.metadata() or {}).get(key) == _checksum(row):
                    return row
            self._discard(name, "a row does not have its checksum")
        except SafetensorError as error:
            self._discard(name, error)
        except OSError:
            # Taken away meanwhile, by hand or by another process that found it broken.
            self._forget({name})
        return None

    def _refresh(self) -> None:
        """Learn of the files that other processes added or took away."""
        try:
            present = {name for name in os.listdir(self.folder) if name.endswith(_SUFFIX) and name[0] != "."}
        except FileNotFoundError:
            present = set()
        except NotADirectoryError as error:
            raise NotADirectoryError(
                f"The trunk cache needs a folder, but {self.folder} is a file or lies below one; name another folder."
            ) from error
        if gone := self._files.keys() - present:
            self._forget(gone)
        for name in present - self._files.keys():
            self._learn(name)

    def _learn(self, name: str) -> None:
        path = self.folder / name
        try:
            size = path.stat().st_size
            with safe_open(path, "pt") as file:
                keys, checksums = set(file.keys()), file.metadata() or {}
        except SafetensorError as error:
            self._discard(name, error)
        except OSError:
            # As above.
            return
        else:
            if keys == checksums.keys():
                self._files[name] = size
                self._places |= dict.fromkeys(keys, name)
            else:
                self._discard(name, "its rows are not those of its header")

    def _forget(self, names: Set[str]) -> None:
        self._files = {name: size for name, size in self._files.items() if name not in names}
        self._places = {key: name for key, name in self._places.items() if name not in names}

    def _discard(self, name: str, reason: object) -> None:
        """Take away a broken file, so that its rows are computed and added again."""
        logger.warning("trunk cache: %s is broken (%s) and left out", self.folder / name, reason)
        self._forget({name})
        try:
            (self.folder / name).unlink(missing_ok=True)
        except OSError:
            # A folder that is read only: known without rows, it is not read again.
            self._files[name] = 0

    # --- writing ---------------------------------------------------------------------------------------------------

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Write the new rows to one file, all or none; raises nothing if that fails."""
        if self._stopped:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".lock", timeout=_LOCK_SECONDS):
                self._sweep()
                self._refresh()
                self._write({key: row for key, row in rows.items() if key not in self._places})
        # NotImplementedError: a file system without locks.
        except (OSError, NotImplementedError) as error:
            self._stopped = True
            logger.warning(
                "trunk cache: %s cannot be written (%s); the work goes on, no further items are kept",
                self.folder,
                error,
            )

    def _write(self, rows: Mapping[str, Tensor]) -> None:
        if not rows:
            return
        copies = {key: _copy(row) for key, row in rows.items()}
        content = safetensors.torch.save(copies, {key: _checksum(row) for key, row in copies.items()})
        if self.size + len(content) > self.limit:
            self._stopped = True
            logger.info("trunk cache: the limit of %d bytes is reached; no further items are kept", self.limit)
            return
        # A name that was never used: others remember what is in a file by its name.
        name = uuid.uuid4().hex + _SUFFIX
        write_file(self.folder / name, content)
        self._learn(name)

    def _sweep(self) -> None:
        """Once: take away what killed writers left. Writers hold the lock, so it belongs to nobody."""
        if not self._swept:
            self._swept = True
            for leftover in self.folder.glob(f".*{_SUFFIX}.*"):
                leftover.unlink(missing_ok=True)


def _copy(row: Tensor) -> Tensor:
    """A row of its own on the CPU; the batch it was cut from is not kept alive."""
    return row.detach().to("cpu", copy=True).contiguous()


def _checksum(row: Tensor) -> str:
    """CRC-32 of a row's number type, shape and bytes."""
    header = f"{row.dtype} {tuple(row.shape)}".encode()
    return f"{zlib.crc32(row.contiguous().view(torch.uint8).numpy().data, zlib.crc32(header)):08x}"

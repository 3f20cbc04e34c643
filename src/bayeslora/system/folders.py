"""Output folders: one writer at a time, parts that change together, and nothing left behind by a kill."""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path

from filelock import FileLock, Timeout

from bayeslora.system.files import check_absent, recover_folder, synchronised, write_json
from bayeslora.system.log import logger
from bayeslora.system.processes import is_main

_NEW = ".new"
_PLAN = "parts.json"
_TEMPORARY = re.compile(r"\.(adapter|merged|mean|.+\.(json|jsonl|yaml|md|html|png|safetensors))\.[a-z0-9_]{8}")
"""What `bayeslora.system.files` writes aside: the name, and eight characters."""
_WRITTEN: ContextVar[frozenset[Path]] = ContextVar("_WRITTEN", default=frozenset())
"""Folders that this thread is the only writer of."""


@contextmanager
def only_writer(folder: str | Path) -> Iterator[None]:
    """Be the only one who writes to `folder`, which is created; what a kill left there is brought to its end first.

    The lock is the file `.lock` in it. The system frees it when its process ends in whatever way. Of several processes
    of one run the main one holds it.

    Raises:
        RuntimeError: Another process writes there.
    """
    folder = Path(folder)
    if not is_main():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / ".lock", folder):
        _finish(folder)
        for part in (folder, folder / "checkpoints", *folder.glob("checkpoints/checkpoint-*")):
            if part.is_dir():
                sweep(part)
        token = _WRITTEN.set(_WRITTEN.get() | {folder.resolve()})
        try:
            yield
        finally:
            _WRITTEN.reset(token)


@contextmanager
def writer_within(folder: str | Path) -> Iterator[None]:
    """`only_writer`, or nothing where this thread is that already: for what any command may add to the folder."""
    if Path(folder).resolve() in _WRITTEN.get():
        yield
        return
    with only_writer(folder):
        yield


@contextmanager
def only_replacer(path: str | Path) -> Iterator[None]:
    """Be the only one who makes or replaces `path`, a folder or a file that is written aside and whole.

    The lock is the file `.NAME.lock` beside it, which is there only meanwhile. What writers that were killed left
    aside is removed first. Of several processes of one run the main one holds it.

    Raises:
        RuntimeError: Another process makes or replaces it.
    """
    path = Path(path)
    if not is_main():
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with _locked(lock, path):
        try:
            recover_folder(path)
            for entry in path.parent.glob(f".{glob.escape(path.name)}.????????"):
                _remove(entry)
            yield
        finally:
            lock.unlink(missing_ok=True)


@contextmanager
def to_be_written(*paths: str | Path | None, overwrite: bool = False) -> Iterator[None]:
    """Be the only one who writes files that a command makes at its end; those that are None are not wanted.

    Raises:
        FileExistsError: One is there, and not `overwrite`.
        RuntimeError: Another process writes one.
    """
    with ExitStack() as locks:
        for path in paths:
            if path is not None:
                locks.enter_context(only_replacer(path))
                check_absent(path, overwrite)
        yield


@contextmanager
def _locked(lock: Path, what: Path) -> Iterator[None]:
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout as error:
        raise RuntimeError(f"another process is writing to {what}; wait until it ends, or name another.") from error
    except NotImplementedError:
        logger.warning("the file system of %s knows no locks: see that nothing else writes there", what)
    try:
        yield
    finally:
        held.release()


@contextmanager
def replaced_together(folder: str | Path, names: Sequence[str]) -> Iterator[Path]:
    """A folder to write parts to; at the end of the block they take the place of all of `names` in `folder`.

    A part that is not written is removed. Before the block has ended well nothing in `folder` changes. From then on all
    parts change: if a kill comes in between, the next `only_writer` or `recover_parts` goes on. Only for who holds
    `only_writer`.

    Args:
        folder: Where the parts are.
        names: Files and folders in it that belong together.
    """
    folder = Path(folder)
    aside = folder / _NEW
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        synchronised(aside)
        parts = sorted(os.listdir(aside))
        write_json(aside / _PLAN, {"written": parts, "removed": sorted(set(names) - set(parts))})
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    _finish(folder)


def recover_parts(folder: str | Path) -> None:
    """For readers: go on with a replacement that was killed between two parts.

    Raises:
        RuntimeError: Another process is replacing them now.
    """
    if (Path(folder) / _NEW / _PLAN).is_file():
        with only_writer(folder):
            pass


def sweep(folder: str | Path) -> None:
    """Remove what saves that were killed left aside in a folder of which the caller is the only writer."""
    for entry in list(Path(folder).iterdir()):
        if _TEMPORARY.fullmatch(entry.name):
            _remove(entry)
        elif entry.name in ("adapter.previous", "merged.previous"):
            whole = entry.with_name(entry.name.removesuffix(".previous"))
            recover_folder(whole)
            _remove(entry)


def _finish(folder: Path) -> None:
    """End a replacement: forwards where it was decided, else as if it had not begun."""
    aside = folder / _NEW
    if (aside / _PLAN).is_file():
        plan = json.loads((aside / _PLAN).read_text(encoding="utf-8"))
        for name in plan["removed"]:
            _remove(folder / name)
        for name in plan["written"]:
            # What is not there any more is in its place already.
            if (aside / name).exists():
                if (folder / name).is_dir():
                    shutil.rmtree(folder / name)
                os.replace(aside / name, folder / name)
        (aside / _PLAN).unlink()
    if aside.exists():
        shutil.rmtree(aside)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

"""Calls of the command line in forked children, which may be killed or find the disk full at a chosen moment."""

import errno
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}


@dataclass(frozen=True)
class Called:
    """How a call ended.

    Args:
        status: Exit status; negative: the signal that ended it.
        said: What it wrote to standard output and error.
        changes: How many changes of files it began; 0 where it was killed.
    """

    status: int
    said: str
    changes: int


def call(*arguments: object, **options: Any) -> Called:
    """`bayeslora ARGUMENTS` in a child; `options` are those of `in_child`."""
    return in_child(lambda: run_command(arguments), **options)


def in_child(
    work: Callable[[], Any],
    *,
    folder: Path | None = None,
    kill_at: int | None = None,
    kill_after: float | None = None,
    full_from: int | None = None,
    limit: float = 180,
) -> Called:
    """`work` in a forked child.

    Args:
        work: What it does.
        folder: In and beside which changes of files are counted.
        kill_at: The child kills itself when it begins this change (from 1).
        kill_after: It is killed after so many seconds.
        full_from: From this change on no file can be made or grown.
        limit: Seconds after which it counts as hanging (status -14).
    """
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as counted:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            _run(work, said.fileno(), counted.fileno(), folder, kill_at, full_from)
        status = _wait(child, min(limit, kill_after or limit), signal.SIGKILL if kill_after else signal.SIGALRM)
        said.seek(0)
        counted.seek(0)
        return Called(status, said.read().decode(errors="replace"), int(counted.read() or 0))


def _wait(child: int, seconds: float, last_signal: int) -> int:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, last_signal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _run(
    work: Callable[[], Any], said: int, counted: int, folder: Path | None, kill_at: int | None, full_from: int | None
) -> None:
    """Never returns."""
    os.dup2(said, 1)
    os.dup2(said, 2)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    changes = _watch(folder, kill_at, full_from)
    status = 0
    try:
        work()
    except SystemExit as stopped:
        status = stopped.code if isinstance(stopped.code, int) else 0 if stopped.code is None else 1
    except BaseException:
        traceback.print_exc()
        status = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(counted, str(changes[0]).encode())
    os._exit(status)


def _watch(folder: Path | None, kill_at: int | None, full_from: int | None) -> list[int]:
    """Count the changes of files in or beside `folder` from now on, and act at the chosen one."""
    changes = [0]
    # Temporary siblings have its name in theirs.
    mark = None if folder is None else folder.name

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if mark is None or not _changes(event, given):
            return
        paths = [os.fsdecode(part) for part in given[:2] if isinstance(part, str | bytes | os.PathLike)]
        if not any(mark in path for path in paths):
            return
        changes[0] += 1
        if kill_at is not None and changes[0] >= kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if full_from is not None and changes[0] >= full_from and event in ("open", "os.mkdir"):
            raise OSError(errno.ENOSPC, "No space left on device", paths[0])

    sys.addaudithook(hook)
    return changes


def _changes(event: str, given: tuple[Any, ...]) -> bool:
    if event == "open":
        flags = given[2] if len(given) > 2 and isinstance(given[2], int) else 0
        return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
    return event in _CHANGES


def run_command(arguments: Sequence[object]) -> None:
    """`bayeslora ARGUMENTS` in this process."""
    import logging

    from bayeslora_cli.main import main

    logging.getLogger().handlers.clear()
    main([str(argument) for argument in arguments])

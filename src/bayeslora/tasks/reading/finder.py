"""Finds a task by name, file, folder or dotted path."""

from __future__ import annotations

import inspect
import os
from pathlib import Path

from bayeslora.options.classes import known, permit
from bayeslora.options.registry import Registry
from bayeslora.tasks.base import Task
from bayeslora.tasks.reading.hints import nearest
from bayeslora.tasks.reading.item import TaskError
from bayeslora.tasks.reading.local import LocalFile
from bayeslora.tasks.reading.rows import READERS

_TASKS: Registry[Task] = Registry(Task, "bayeslora.tasks", outside=False)  # type: ignore[type-abstract]
"""The built-in ones; others are named by their dotted paths."""


def task_names() -> list[str]:
    """Return the names of the built-in tasks, sorted."""
    return _TASKS.names()


def get_task(name: str) -> Task:
    """Return the task that a name, in any spelling, a data file, a folder or a dotted path stands for.

    "arc_easy", "ARC-Easy" and "ArcEasy" are one task. A folder holds a train file and may hold a dev
    and a test file. A dotted path such as "my.module.MyTask" names a Task that is imported already: the name may stand
    in a config of somebody else, which does not decide what is imported.

    >>> get_task("ARC-Easy").name
    'arc_easy'
    >>> import json, pathlib, tempfile
    >>> rows = [{"id": str(n), "question": f"{n} + 1?", "choices": [n, n + 1], "label": n + 1} for n in range(20)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "sums.jsonl")
    ...     _ = file.write_text("\\n".join(json.dumps(row) for row in rows))
    ...     splits = get_task(str(file)).splits()
    >>> len(splits.train), len(splits.dev), len(splits.test), splits.train[0].choices
    (16, 1, 3, ('0', '1'))

    Raises:
        TaskError: there is no such task, or it cannot be made.
    """
    path = Path(name)
    if path.suffix.lower() in READERS:
        return LocalFile(path)
    if "/" in name or os.sep in name:
        return _from_folder(path)
    tasks = {_key(task.name): task for task in _TASKS.classes()}
    if _key(name) in tasks:
        return tasks[_key(name)]()
    if path.is_dir():
        return _from_folder(path)
    if _is_dotted(name):
        return _from_dotted(name)
    raise _unknown(name)


def allow_task(name: str) -> None:
    """Import the task at a dotted path that a user has named; other names need nothing.

    Raises:
        TaskError: there is no such task.
    """
    if not _is_dotted(name):
        return
    try:
        permit(Task, name)  # type: ignore[type-abstract]
    except (ImportError, TypeError) as error:
        raise TaskError(f"task {name!r}: {error}") from error


def _is_dotted(name: str) -> bool:
    return "." in name and all(part.isidentifier() for part in name.split(".")) and not _is_file(name)


def _is_file(name: str) -> bool:
    return Path(name).suffix.lower() in READERS or Path(name).is_dir()


def _key(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _from_folder(folder: Path) -> Task:
    files = {part: _part_file(folder, part) for part in ("train", "dev", "test")}
    train = files["train"]
    if train is None:
        endings = ", ".join(READERS)
        raise TaskError(
            f"{folder}: expected a folder with train.jsonl (and dev.jsonl, test.jsonl) or a file ending in "
            f"{endings}, but there is none; correct the path, or use one of: {', '.join(task_names())}."
        )
    return LocalFile(train, files["dev"], files["test"], name=folder.resolve().name)


def _part_file(folder: Path, part: str) -> Path | None:
    candidates = (folder / f"{part}{ending}" for ending in READERS)
    return next((path for path in candidates if path.is_file()), None)


def _from_dotted(name: str) -> Task:
    found = known(Task, name)  # type: ignore[type-abstract]
    if found is None:
        raise TaskError(
            f"task {name!r} is code that is not imported, and a config does not decide what is. If you trust it, name "
            f"it yourself: --allow_task {name}, or in Python import its module first."
        )
    if inspect.isabstract(found):
        raise TaskError(f"task {name!r} should be a class derived from Task, but it is {found!r}; derive it.")
    return found()


def _unknown(name: str) -> TaskError:
    names = task_names()
    return TaskError(
        f"there is no task {name!r}; {nearest(name, names)}use one of: {', '.join(names)}; "
        "or a data file, a folder with train.jsonl, or a dotted path such as my.module.MyTask."
    )

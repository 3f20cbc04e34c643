"""Writing so that nothing is lost: aside first, then renamed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor

from bayeslora.distributed import is_dtensor, is_main, is_sharded, wait, whole

__all__ = [
    "atomic_file",
    "atomic_folder",
    "disk_is_full",
    "last_complete_checkpoint",
    "recover_folder",
    "save_adapter",
    "write_json",
]

_PREVIOUS = ".previous"


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """A temporary sibling of `path` to write to; it takes the place of `path` only if the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(name)
        _synchronise(Path(name))
        os.chmod(name, 0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A temporary sibling folder of `path`; it takes the place of `path` only if the block ends well.

    A folder cannot be replaced in one step, so the old one is set aside for a moment under `<path>.previous`;
    `recover_folder` brings it back if the process was killed in that moment.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(path)
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    previous = path.with_name(path.name + _PREVIOUS)
    try:
        yield aside
        for file in aside.rglob("*"):
            if file.is_file():
                _synchronise(file)
        os.chmod(aside, 0o755)
        shutil.rmtree(previous, ignore_errors=True)
        if path.exists():
            os.rename(path, previous)
        try:
            os.rename(aside, path)
        except OSError:
            recover_folder(path)
            raise
        shutil.rmtree(previous, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def recover_folder(path: str | Path) -> None:
    """Bring back `path` if a save was killed between setting the old folder aside and renaming the new one."""
    path = Path(path)
    previous = path.with_name(path.name + _PREVIOUS)
    if previous.exists() and not path.exists():
        # Of several processes one is the first.
        with suppress(FileNotFoundError):
            os.rename(previous, path)


def save_adapter(model: PeftModel, path: str | Path, **options: Any) -> None:
    """`model.save_pretrained(path, **options)`, but a full disk or a kill leaves the adapter that was there whole.

    Of several processes the main one writes, and all must call it: an adapter that FSDP2 has sharded is gathered.

    Raises:
        OSError: The disk is full or not writable; `path` is as it was before.
    """
    if is_sharded(model):
        options = {"state_dict": _gathered(model), **options}
    if is_main():
        with atomic_folder(path) as aside:
            model.save_pretrained(str(aside), **options)
    wait()


def _gathered(model: PeftModel) -> dict[str, Tensor]:
    """The state of a sharded model, trained parameters whole, without the frozen ones that are sharded."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    state = {name: whole(value) if name in trained else value for name, value in model.state_dict().items()}
    return {name: value for name, value in state.items() if not is_dtensor(value)}


def write_json(path: str | Path, content: Any) -> None:
    """`content` as indented JSON, atomically."""
    with atomic_file(path) as aside:
        aside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def last_complete_checkpoint(folder: str | Path) -> str | None:
    """The newest `checkpoint-<step>` of a Trainer's output folder that was written to its end, or None.

    The trainer writes trainer_state.json last; a folder where it is missing or broken was cut off by a kill.
    """
    checkpoints = [entry for entry in Path(folder).glob("checkpoint-*") if entry.name.rpartition("-")[2].isdigit()]
    for entry in sorted(checkpoints, key=lambda entry: -int(entry.name.rpartition("-")[2])):
        try:
            json.loads((entry / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return str(entry)
    return None


def disk_is_full(error: BaseException) -> bool:
    """Whether there is no space left where something was to be written (or no quota)."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _synchronise(path: Path) -> None:
    """Have the bytes on disk before the rename is."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())

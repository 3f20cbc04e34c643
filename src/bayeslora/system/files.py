"""Writing so that nothing is lost: aside first, then renamed."""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from torch import Tensor

from bayeslora.system.processes import barrier, full_tensor, is_dtensor, is_main, is_sharded

_PREVIOUS = ".previous"
_KILLED = 3600
"""Seconds after which a file that is still aside is nobody's."""


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """A temporary sibling of `path` to write to; it takes the place of `path` only if the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _forget_killed(path)
    aside = _aside(path)
    # With the permissions that the user's umask leaves, as any new file.
    aside.touch(exist_ok=False)
    mode = aside.stat().st_mode & 0o777
    try:
        yield aside
        _synchronise(aside)
        # safetensors puts a file of its own in the place, which only its owner may read.
        os.chmod(aside, mode)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _forget_killed(path: Path) -> None:
    """Remove what writers of `path` that were killed left aside; one that is at work has written to its own lately."""
    pattern = re.compile(re.escape(f".{path.name}.") + "[a-z0-9_]{8}")
    for entry in path.parent.glob(f".{glob.escape(path.name)}.*"):
        with suppress(OSError):
            if pattern.fullmatch(entry.name) and entry.is_file() and time.time() - entry.stat().st_mtime > _KILLED:
                entry.unlink()


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A temporary sibling folder of `path`; it takes the place of `path` only if the block ends well.

    A folder cannot be replaced in one step, so the old one is set aside for a moment under `<path>.previous`;
    `recover_folder` brings it back if the process was killed in that moment.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(path)
    aside = _aside(path)
    aside.mkdir()
    previous = path.with_name(path.name + _PREVIOUS)
    try:
        yield aside
        mode = aside.stat().st_mode & 0o666
        for file in synchronised(aside):
            os.chmod(file, mode)
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
            for name, config in model.peft_config.items():
                sort_sets(aside if name == "default" else aside / name, config)
    barrier()


def sort_sets(folder: str | Path, config: PeftConfig) -> None:
    """Order what PEFT keeps as a set, such as target_modules, in a folder's adapter_config.json.

    Python hashes texts differently in every process, and so PEFT writes other bytes in each.
    """
    path = Path(folder) / "adapter_config.json"
    chosen = {name: sorted(value) for name, value in vars(config).items() if isinstance(value, set)}
    if chosen and path.is_file():
        content = json.loads(path.read_text(encoding="utf-8")) | chosen
        path.write_text(json.dumps(content, indent=2, sort_keys=True), encoding="utf-8")


def _gathered(model: PeftModel) -> dict[str, Tensor]:
    """The state of a sharded model, trained parameters whole, without the frozen ones that are sharded."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    state = {name: full_tensor(value) if name in trained else value for name, value in model.state_dict().items()}
    return {name: value for name, value in state.items() if not is_dtensor(value)}


def write_file(path: str | Path, content: str | bytes) -> None:
    """A text, as UTF-8, or bytes, atomically."""
    with atomic_file(path) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: str | Path, content: Any) -> None:
    """`content` as indented JSON, atomically."""
    write_file(path, json.dumps(content, indent=2) + "\n")


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
    """Whether there is no space left where something was to be written (or no quota), also where another error says so
    in words of its own.
    """
    cause: BaseException | None = error
    while cause is not None and not _is_of_disk(cause):
        cause = cause.__cause__
    return cause is not None


def _is_of_disk(error: BaseException) -> bool:
    """tokenizers and safetensors, which are written in Rust, have the number in their words alone."""
    numbers = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in numbers or any(f"(os error {number})" in str(error) for number in numbers)


def check_absent(path: str | Path, overwrite: bool = False) -> None:
    """Whether something may be written there.

    Raises:
        FileExistsError: It is there already.
    """
    if not overwrite and Path(path).exists():
        raise FileExistsError(
            f"{path} is there already and is left alone; name another place, or replace it with --overwrite (in "
            "Python: overwrite=True)."
        )


def _aside(path: Path) -> Path:
    """A temporary name beside `path`; `bayeslora.system.folders` sweeps what a kill left under such names."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def synchronised(folder: Path) -> list[Path]:
    """All files in a folder, however deep, with their bytes on the disk."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    for file in files:
        _synchronise(file)
    return files


def _synchronise(path: Path) -> None:
    """Have the bytes on disk before the rename is."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())

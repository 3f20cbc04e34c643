"""Checkpoints of a training: an error of one says which, and what to do about it."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from torch import nn

from bayeslora.system.files import disk_is_full

if TYPE_CHECKING:
    from transformers import Trainer as _Parent
else:
    _Parent = object

_DAMAGE = (pickle.UnpicklingError, EOFError, RuntimeError, LookupError, ValueError, TypeError, SafetensorError)
"""What torch, safetensors and transformers raise over a file that is cut or is of another training."""


class NamedCheckpoints(_Parent):
    """A mixin for Trainers: a checkpoint that is damaged, or that the disk has no room for, is named."""

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with checkpoint_written(str(self.args.output_dir)):
            super()._save_checkpoint(*args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        with checkpoint_read(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: Any) -> None:
        with checkpoint_read(checkpoint):
            super()._load_rng_state(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: Any, model: nn.Module | None = None) -> None:
        with checkpoint_read(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)


@contextmanager
def checkpoint_read(folder: str | None) -> Iterator[None]:
    """What is raised inside over a damaged file names the folder of the checkpoint.

    Raises:
        ValueError: A file in it is damaged.
    """
    try:
        yield
    except _DAMAGE as cause:
        raise ValueError(
            f"the checkpoint {folder} is damaged or belongs to another run ({_first_line(cause)}). Remove that folder "
            "to go on from the one before it, or train from the start without --resume."
        ) from cause


@contextmanager
def checkpoint_written(folder: str) -> Iterator[None]:
    """What is raised inside over a disk that is full names the folder of the checkpoints.

    Raises:
        OSError: A file could not be written.
    """
    try:
        yield
    except Exception as cause:
        # torch says so by a RuntimeError, safetensors by an error of its own, tokenizers by an Exception.
        if not (isinstance(cause, (OSError, RuntimeError, SafetensorError)) or disk_is_full(cause)):
            raise
        raise OSError(
            f"a checkpoint could not be written to {folder} ({_first_line(cause)}). Those before it are whole: make "
            "room on the disk and go on with --resume."
        ) from cause


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"

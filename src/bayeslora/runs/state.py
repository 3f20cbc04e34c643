"""posterior.safetensors of a run folder: what a method knows beyond its adapter."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from bayeslora.methods import State
from bayeslora.system.files import atomic_file
from bayeslora.system.reading import read_tensors

STATE = "posterior.safetensors"


def save_state(state: State, folder: Path) -> None:
    """Write it atomically; without anything to keep, an earlier run's file is removed."""
    if not state:
        (folder / STATE).unlink(missing_ok=True)
        return
    with atomic_file(folder / STATE) as aside:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, aside)


def load_state(folder: Path) -> State:
    """What `save_state` wrote; empty where there is no file.

    Raises:
        ValueError: The file is damaged, or a number in it is not finite.
    """
    path = folder / STATE
    return read_tensors(path) if path.is_file() else {}

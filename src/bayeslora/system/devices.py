"""The device that a model is put on, and how many threads torch computes small matrices with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bayeslora.system.log import logger

_ROWS = 2000
"""Rows of a square matrix for each thread: below, on a busy machine, threads wait for one another longer than they
compute (a fit of a head to 60 items took 0.9 s with one and 4.4 s with two, to 400 items 11 s and 26 to 119 s)."""


def choose_device(name: str) -> torch.device:
    """The device of this name; "auto" is CUDA, else Apple's MPS, else the CPU.

    Raises:
        ValueError: There is no such device in this machine, or no device has such a name.
    """
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if is_here(kind))
    if is_here(name):
        return torch.device(name)
    have = ", ".join(kind for kind in ("cpu", "cuda", "mps", "xpu") if is_here(kind))
    raise ValueError(
        f"there is no device {name!r} here; this machine has: {have}. Name one of them (with a number, such as cuda:1, "
        "one of several), or 'auto'. A GPU that is missing from the list needs its driver and a torch that was built "
        "for it."
    )


def is_here(name: str) -> bool:
    """Whether this machine has the device of this name."""
    try:
        device = torch.device(name)
    except RuntimeError:
        return False
    backend = torch.backends.mps if device.type == "mps" else getattr(torch, device.type, None)
    if backend is None or not backend.is_available():
        return False
    return device.type != "cuda" or (device.index or 0) < torch.cuda.device_count()


def kept_device(name: str) -> str:
    """The device that a run was trained on; "auto", with a word, where this machine does not have it."""
    if name == "auto" or is_here(name):
        return name
    logger.warning("the run was trained on %r, which is not here; it is loaded on %s", name, choose_device("auto"))
    return "auto"


@contextmanager
def threads_for(rows: int) -> Iterator[None]:
    """Inside, torch uses no more threads than work on matrices of so many rows is worth; afterwards as many as before.

    For work of many steps on small matrices, between which the threads of OpenMP spin. The number is the process's own.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, max(1, rows // _ROWS)))
    try:
        yield
    finally:
        torch.set_num_threads(before)

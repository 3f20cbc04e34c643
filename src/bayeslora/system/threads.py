"""How many threads torch computes small matrices with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_ROWS = 2000
"""Rows of a square matrix for each thread: below, on a busy machine, threads wait for one another longer than they
compute (a fit of a head to 60 items took 0.9 s with one and 4.4 s with two, to 400 items 11 s and 26 to 119 s)."""


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

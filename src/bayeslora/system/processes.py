"""The processes of one run: joining them, who writes, and how work is shared and its results gathered.

Started by torchrun or `accelerate launch`; in a process of its own everything here does nothing.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

T = TypeVar("T")

# Of torchrun, and of the MPI launchers that accelerate reads.
_WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def is_launched() -> bool:
    """Whether this process was started as one of several."""
    return _from_environment(_WORLD_SIZES, 1) > 1 and _from_environment(_RANKS, -1) >= 0


def init_processes(device: str) -> str:
    """Join the other processes, if this one was started as one of several, and return the device of this one.

    Args:
        device: A torch device name, or "auto"; each process gets a GPU of its own where there are any.

    Raises:
        ValueError: `device` names one GPU for all processes.
    """
    if not is_launched():
        return device
    from accelerate import PartialState

    if ":" in device:
        raise ValueError(
            f"{world_size()} processes cannot share the device {device!r}; leave model.device at 'auto', and choose "
            "GPUs by CUDA_VISIBLE_DEVICES."
        )
    if not _joined():
        atexit.register(_part)
    return str(PartialState(cpu=device == "cpu" or not torch.cuda.is_available()).device)


def world_size() -> int:
    """Number of processes."""
    if _joined():
        return distributed.get_world_size()
    return _from_environment(_WORLD_SIZES, 1) if is_launched() else 1


def rank() -> int:
    """Number of this process, from 0."""
    if _joined():
        return distributed.get_rank()
    return _from_environment(_RANKS, 0) if is_launched() else 0


def is_main() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return rank() == 0


def barrier() -> None:
    """Wait here for all other processes."""
    if _joined():
        distributed.barrier()


def shard_items(work: Sequence[T]) -> Sequence[T]:
    """The part of `work` for this process: every world-size-th piece."""
    return work[distributed.get_rank() :: distributed.get_world_size()] if _joined() else work


def gather_items(results: Sequence[T]) -> list[T]:
    """Results of the pieces of all processes, in the order of the work that `share` was given."""
    if not _joined():
        return list(results)
    parts = _gather(results)
    longest = max(map(len, parts))
    return [part[index] for index in range(longest) for part in parts if index < len(part)]


def all_reduce_max(value: float | None) -> float | None:
    """The largest value of all processes, None where one does not know it."""
    values = _gather(value) if _joined() else [value]
    return None if None in values else max(entry for entry in values if entry is not None)


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 has spread the parameters over the processes; then every forward needs all of them."""
    return any(is_dtensor(parameter) for parameter in model.parameters())


def full_tensor(value: Tensor) -> Tensor:
    """All of a tensor that FSDP2 has sharded; another one as it is.

    Its backward takes this process's share of the gradient and sums nothing over processes: for what every process
    computes alike, such as the KL.
    """
    if not is_dtensor(value):
        return value
    full: Any = value
    gathered: Tensor = full.full_tensor()
    return gathered


@contextmanager
def main_speaks() -> Iterator[None]:
    """Standard output is the main process's alone."""
    if is_main():
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield


def is_dtensor(value: Tensor) -> bool:
    """Whether a tensor is one shard of several."""
    # Asked for every factor at every step.
    if type(value) in (Tensor, nn.Parameter) or not distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def _joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _part() -> None:
    if _joined():
        distributed.destroy_process_group()


def _gather(value: T) -> list[T]:
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def _from_environment(names: Sequence[str], default: int) -> int:
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), default)

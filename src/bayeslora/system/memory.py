"""Memory: the peak of a piece of work, and what the allocator of the processor does with what is freed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch


@dataclass
class PeakMemory:
    """The highest number of bytes in use, None where it cannot be measured."""

    peak: int | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[PeakMemory]:
    """Measure the peak inside the block: allocated memory on a GPU, resident memory of this process on Linux.

    Both include what was there before the block, such as the base model.
    """
    result = PeakMemory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield result
        result.peak = torch.cuda.max_memory_allocated(device)
        return
    measurable = _reset_resident_peak()
    yield result
    result.peak = _resident_peak() if measurable else None


@cache
def keep_freed_blocks() -> None:
    """Let glibc keep freed blocks of up to 32 MiB, which it would hand back to the system and page in anew.

    Its thresholds follow the largest block that was ever freed, up to that size. Other allocators take no notice.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8, device="cpu")


def _reset_resident_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _resident_peak() -> int | None:
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="ignore").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None

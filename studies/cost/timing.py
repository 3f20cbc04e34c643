"""Paired timing: every round runs all candidates once, in an order of its own, and ratios are taken within a round."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bayeslora.system.files import atomic_file

Work = Callable[[], object]
CLOCKS: Mapping[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}
"""Wall time, or on a busy machine and one thread the time that this process had a processor."""


def common_options(description: str, rounds: int) -> argparse.ArgumentParser:
    """A parser with what every measurement here asks: where to save, on what, how often."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=rounds)
    return parser


def seconds(work: Work, device: torch.device, clock: str = "wall") -> float:
    """Time of one call, the device's queue included."""
    gc.collect()
    _synchronise(device)
    start = CLOCKS[clock]()
    work()
    _synchronise(device)
    return CLOCKS[clock]() - start


def paired(
    candidates: Mapping[str, Work], device: torch.device, rounds: int, warmup: int = 1, clock: str = "wall"
) -> dict[str, list[float]]:
    """Seconds of each candidate in each round; the order within a round is shuffled."""
    order = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(warmup + rounds):
        names = order.sample(list(candidates), len(candidates))
        for name in names:
            spent = seconds(candidates[name], device, clock)
            if number >= warmup:
                times[name].append(spent)
        print(f"round {number + 1} of {warmup + rounds}", file=sys.stderr, flush=True)
    return times


def least(candidates: Mapping[str, Work], rounds: int, items: int) -> dict[str, float]:
    """Processor seconds of each candidate for one of its `items`, the least of all rounds."""
    times = paired(candidates, torch.device("cpu"), rounds, warmup=0, clock="processor")
    return {name: min(spent) / items for name, spent in times.items()}


def ratios(times: Mapping[str, list[float]], reference: str) -> dict[str, dict[str, float]]:
    """Median and quartiles of each candidate's time over the reference's, round by round."""
    table = {}
    for name, spent in times.items():
        shares = [own / base for own, base in zip(spent, times[reference], strict=True)]
        low, middle, high = statistics.quantiles(shares, n=4, method="inclusive")
        table[name] = {
            "ratio": round(middle, 4),
            "lower_quartile": round(low, 4),
            "upper_quartile": round(high, 4),
            "median_seconds": round(statistics.median(spent), 5),
        }
    return table


def environment(device: torch.device) -> dict[str, Any]:
    """What the numbers depend on."""
    cuda = device.type == "cuda"
    return {
        "command": " ".join(["python", *_program(), *sys.argv[1:]]),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if cuda else _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft", "bayeslora")},
    }


def save(path: Path, record: Mapping[str, Any]) -> None:
    """The record as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as aside:
        aside.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}")


def _program() -> list[str]:
    """How this program was named: `-m` and its module, or its file."""
    spec = sys.modules["__main__"].__spec__
    return [os.path.relpath(sys.argv[0])] if spec is None else ["-m", spec.name]


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore").splitlines():
        if line.startswith("model name"):
            return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"

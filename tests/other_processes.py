"""Scripts in other processes: in a new Python, or, where imports are not the point, in a copy of one that did them.

The imports of torch, transformers and PEFT cost about seven seconds of a processor; a copy costs a tenth of one.
"""

import gc
import multiprocessing
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import pytest
from torch.distributed import TCPStore

TIMEOUT = 240.0
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
IMPORTED = ("conftest", "accelerate", "bayeslora.runs", "bayeslora_cli.main")


def run_python(
    script: str, folder: Path, *arguments: str, launcher: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run `script`, written to `folder`, in a new Python that imports what these tests import."""
    return subprocess.run(
        [sys.executable, *launcher, str(_written(script, folder)), *arguments],
        env=_environment(),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


def run_copy(script: str, folder: Path, *arguments: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """As `run_python`, but in copies of a Python that has imported torch, transformers, PEFT and bayeslora.

    Several `processes` can form a process group, as those that torchrun starts; one that fails ends the others.
    Variables that are read by imports (`HF_HOME`, `PYTHONHASHSEED`) have their values of before.
    """
    command = [str(_written(script, folder)), *arguments]
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if processes > 1 else None
    running = []
    for rank in range(processes):
        environment = _environment() | (_torchrun(rank, processes, store.port) if store else {})
        running.append(_context().Process(target=_script, args=(command, folder, environment, rank)))
    for process in running:
        process.start()
    _wait_for(running)
    said = ["".join((folder / f"{rank}.{name}").read_text() for rank in range(processes)) for name in ("out", "err")]
    code = next((process.exitcode for process in running if process.exitcode), 0)
    return subprocess.CompletedProcess(command, code, *said)


def _written(script: str, folder: Path) -> Path:
    path = folder / "script.py"
    path.write_text(script, encoding="utf-8")
    return path


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **ENVIRONMENT}


def _torchrun(rank: int, processes: int, port: int) -> dict[str, str]:
    """What torchrun tells a process; the store is that of the parent, so that no port is chosen twice."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    store = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
    return {name: str(value) for name, value in {**ranks, **store, "TORCHELASTIC_RESTART_COUNT": 0}.items()}


@cache
def _context() -> ForkServerContext:
    """Forks from a server that did nothing but import, and that ends with this process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _environment().items():
            patch.setenv(name, value)
        forkserver.ensure_running()
    return context


def _script(command: list[str], folder: Path, environment: dict[str, str], rank: int) -> None:
    """In the copy: `command` as `python` would run it in `folder`, its output in files there."""
    gc.freeze()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, name in ((1, "out"), (2, "err")):
        with open(f"{rank}.{name}", "wb") as file:
            os.dup2(file.fileno(), number)
    sys.argv = command
    sys.path.insert(0, str(folder))
    runpy.run_path(command[0], run_name="__main__")


def _wait_for(processes: Sequence[ForkServerProcess]) -> None:
    """Until all have ended or one has failed."""
    running, end = {process.sentinel: process for process in processes}, time.monotonic() + TIMEOUT
    try:
        while running and not any(process.exitcode for process in processes):
            ended = wait(list(running), max(0.0, end - time.monotonic()))
            if not ended:
                raise subprocess.TimeoutExpired(str(processes[0]), TIMEOUT)
            for sentinel in ended:
                running.pop(sentinel).join()
    finally:
        for process in running.values():
            process.kill()
            process.join()

"""Peak memory of a process that predicts by the mean, and of one that reads the uncertainty beside it.

OMP_NUM_THREADS=1 python -m studies.methods.one_pass.memory RUN...    (of studies/methods/gauss_newton/train.sh)

Writes memory.json: the bytes of each process, which loads the run and predicts without a trunk cache.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from bayeslora.methods.one_pass import OnePass
from bayeslora.runs import load_run, task_items
from bayeslora.system.memory import peak_memory
from studies.methods.gauss_newton.measure import TIMED, fitted

RESULTS = Path(__file__).with_name("memory.json")
CURVED = 64
"""Training items of the posterior, whose tensors have the same sizes with all of them."""


def one(folder: str, state: str) -> int:
    run = replace(load_run(folder), temperature=1.0).without_cache()
    if state != "mean":
        run = replace(run, config=replace(run.config, method=OnePass()), state=torch.load(state))
    with peak_memory(torch.device("cpu")) as memory:
        run.predict(task_items(run.config.task).test[:TIMED], 0 if state == "mean" else 10, progress=False)
    return memory.peak or 0


def measure(folder: str) -> dict[str, float]:
    run = load_run(folder)
    reading, _ = fitted(run, task_items(run.config.task).train[:CURVED], OnePass())
    with tempfile.TemporaryDirectory() as place:
        torch.save(reading.state, f"{place}/state.pt")
        found = {
            name: _in_a_process(folder, state) for name, state in (("mean", "mean"), ("one_pass", f"{place}/state.pt"))
        }
    return found | {"ratio": round(found["one_pass"] / found["mean"], 4)}


def _in_a_process(folder: str, state: str) -> int:
    """The least of three."""
    command = [sys.executable, "-W", "ignore", "-m", "studies.methods.one_pass.memory", "--one", folder, state]
    return min(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(3))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "--one":
        print(one(*sys.argv[2:]))
    else:
        RESULTS.write_text(json.dumps({Path(folder).name: measure(folder) for folder in sys.argv[1:]}, indent=1) + "\n")

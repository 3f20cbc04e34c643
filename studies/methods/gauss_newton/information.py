"""How much the Gauss-Newton posterior learns from items: over their number, and over the rate of its mean's training.

OMP_NUM_THREADS=1 python studies/methods/gauss_newton/information.py ITEMS,... RUN...    (runs of ../fair)

Writes a line per run and number of items to information.jsonl; what is there is not measured again.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measure import fitted
from torch import Tensor

from bayeslora.methods.gauss_newton import GaussNewton
from bayeslora.runs import load_run
from bayeslora.runs.building import open_trunk_cache
from bayeslora.runs.items import task_items

RESULTS = Path(__file__).with_name("information.jsonl")
TEST = 100
FIXED = 0.5
"""A prior scale for all: that of the evidence follows the size of the mean, and so the rate of its training."""


def effective(values: Tensor, scale: float) -> float:
    """Parameters that the data determine, sum of l s^2 / (1 + l s^2) over the eigenvalues l of the curvature."""
    weighted = values.double() * scale**2
    return float((weighted / (1 + weighted)).sum())


def measure(folder: str, sizes: Sequence[int], done: set[tuple[str, int]]) -> Iterator[dict[str, Any]]:
    """A record per number of training items, the first so many of the run's own."""
    run = replace(load_run(folder), temperature=1.0)
    splits = task_items(run.config.task)
    run.trunk_cache = open_trunk_cache(run.config, run.model)
    for size in sizes:
        if (Path(folder).name, size) in done:
            continue
        reading, _ = fitted(run, splits.train[:size], GaussNewton())
        state: Any = reading.state
        scale = float(state["prior_variance"]) ** 0.5
        ratio = reading.predict(splits.test[:TEST], 1, progress=False).predictive.further["variance_ratio"]
        yield {
            "run": Path(folder).name,
            "seed": run.config.seed,
            "learning_rate": run.config.train.learning_rate,
            "items": size,
            "prior_scale": scale,
            "effective_parameters": effective(state["values"], scale),
            f"effective_parameters at {FIXED}": effective(state["values"], FIXED),
            "information": 1 - float(ratio.mean()),
            "log_evidence": float(state["log_evidence"]),
        }


if __name__ == "__main__":
    torch.set_num_threads(1)
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    done = {(record["run"], record["items"]) for record in map(json.loads, lines)}
    sizes = [int(size) for size in sys.argv[1].split(",")]
    for folder in sys.argv[2:]:
        for record in measure(folder, sizes, done):
            print(record, flush=True)
            with RESULTS.open("a") as file:
                file.write(json.dumps(record) + "\n")

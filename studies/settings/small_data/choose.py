"""Chooses the prior of Bayesian-LoRA on small-data cells, on items outside the test split: never on the test split.

OMP_NUM_THREADS=1 python studies/settings/small_data/choose.py studies/settings/small_data/small_data.jsonl

MiniLM with a new head, one seed. A candidate is trained on a few items of the training split and scored on up to
`POOL` of those that are left over, dev included. One line per candidate is appended as it ends; what the file already
holds is skipped.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bayeslora.methods import BayesianLora, Lora, Method
from bayeslora.metrics import summary
from bayeslora.runs import task_items, train
from bayeslora.runs.config import ModelConfig, RunConfig, TaskConfig, TrainConfig
from bayeslora.tasks import Item

CELLS = {
    "sst2_32": (TaskConfig(name="sst2", scoring="classification", train_examples=32), 60),
    "mrpc_64": (TaskConfig(name="mrpc", scoring="classification", train_examples=64), 20),
    "rte_64": (TaskConfig(name="rte", scoring="classification", train_examples=64), 20),
}
"""Task and epochs; each is 240 or 160 steps of 8 items."""
POOL = {"sst2_32": 240, "mrpc_64": 200, "rte_64": 200}


def prior(mean: float, noise: list[float]) -> BayesianLora:
    """Bayesian-LoRA with this prior of B's mean and these prior standard deviations of A and B."""
    return BayesianLora(
        prior_std=noise, inducing_std=0.5, inducing_diagonal=1.0, posterior_std=0.5, mean_std=[None, mean]
    )


CANDIDATES: dict[str, Method] = {
    "lora": Lora(),
    "mean_std 0.3": prior(0.3, [0.1, 0.03]),
    "mean_std 0.2": prior(0.2, [0.1, 0.03]),
    "mean_std 0.1": prior(0.1, [0.1, 0.03]),
    "mean_std 0.05": prior(0.05, [0.1, 0.03]),
    "mean_std 0.15, prior_std 0.15 and 0.05": prior(0.15, [0.15, 0.05]),
    "mean_std 0.3, prior_std 0.2 and 0.06": prior(0.3, [0.2, 0.06]),
}


def left_over(cell: str) -> list[Item]:
    """Items of the cell's task that are in neither its training items nor the test split."""
    task = CELLS[cell][0]
    everything = task_items(replace(task, train_examples=None))
    used = {item.id for item in task_items(task).train}
    items = [item for item in everything.train if item.id not in used] + list(everything.dev)
    random.Random(0).shuffle(items)
    return items[: POOL[cell]]


def scored(cell: str, name: str, items: list[Item]) -> dict[str, Any]:
    """Train a candidate and score it by its mean and by 10 draws."""
    task, epochs = CELLS[cell]
    method = CANDIDATES[name]
    options = TrainConfig(epochs=epochs, learning_rate=3e-3, save_steps=100000, arguments={"disable_tqdm": True})
    config = RunConfig(ModelConfig("offline:minilm"), task, method, options, seed=0, batch_size=40)
    with tempfile.TemporaryDirectory() as folder:
        run = train(config, folder, evaluate_dev=False)
    record: dict[str, Any] = {"cell": cell, "candidate": name, "arguments": method.arguments, "items": len(items)}
    record["train_nll"] = round(run.metrics["history"][-1]["nll"], 3)
    labels = torch.tensor([item.label for item in items])
    for samples in (0,) if method.name == "lora" else (0, 10):
        scores = summary(run.predict(items, samples).predictive.probabilities, labels)
        record[f"{samples} samples"] = {name: round(float(scores[name]), 3) for name in ("accuracy", "nll", "ece")}
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--tasks", nargs="+", choices=list(CELLS), default=list(CELLS))
    parser.add_argument("--candidates", nargs="+", choices=list(CANDIDATES), default=list(CANDIDATES))
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    lines = options.output.read_text().splitlines() if options.output.exists() else []
    done = {(record["cell"], record["candidate"]) for record in map(json.loads, lines)}
    for cell in options.tasks:
        items = left_over(cell)
        for name in options.candidates:
            if (cell, name) not in done:
                with options.output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(scored(cell, name, items)) + "\n")


if __name__ == "__main__":
    main()

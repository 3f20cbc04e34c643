"""Which layers and modules need adapters: calibration and cost on the dev split, never on the test split.

python studies/settings/placement/measure.py studies/settings/placement/dev.jsonl   # writes table.md beside it

SmolLM2-135M on ARC-Easy by cloze scoring, the same training for every placement. One line per placement and seed is
appended as it ends; those that the file already holds are skipped. `cpu_seconds` are those of
this process, so that other work on the machine counts little; the trunk cache is on while training and off in
prediction, as for items that have not been seen before.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from bayeslora.methods import BayesianLora
from bayeslora.runs import train
from bayeslora.runs.config import ModelConfig, RunConfig, TaskConfig, TrainConfig

ATTENTION = ["q_proj", "v_proj"]
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PLACEMENTS: dict[str, dict[str, Any]] = {
    "all, q and v": {"placement": "all", "target_modules": ATTENTION},
    "top_half, q and v": {"placement": "top_half", "target_modules": ATTENTION},
    "top_quarter, q and v": {"placement": "top_quarter", "target_modules": ATTENTION},
    "top_quarter, all linear": {"placement": "top_quarter", "target_modules": LINEAR},
    "top_half, v": {"placement": "top_half", "target_modules": ["v_proj"]},
    "last 4 layers, all linear": {"last_layers": 4, "target_modules": LINEAR},
}


def measured(options: dict[str, Any], seed: int) -> dict[str, Any]:
    """Train and predict dev, with the CPU seconds of both."""
    config = RunConfig(
        model=ModelConfig(name="offline:smollm2", dtype="float32", device="cpu"),
        task=TaskConfig(name="arc_easy", scoring="cloze", train_examples=64, dev_examples=102),
        method=BayesianLora(**options),
        train=TrainConfig(epochs=4, batch_size=8, learning_rate=3e-3, logging_steps=1),
        seed=seed,
        num_samples=5,
    )
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        trained = train(config, folder, evaluate_dev=False)
        trained_seconds = time.process_time() - started
    started = time.process_time()
    scores = replace(trained, trunk_cache=None).predict(trained.splits.dev).metrics()
    history = trained.metrics["history"]
    return {
        **{name: scores[name] for name in ("accuracy", "nll", "ece", "brier", "num_examples", "num_samples", "spread")},
        "last_train_nll": round(sum(entry["nll"] for entry in history[-8:]) / 8, 4),
        "cpu_seconds": {"train": round(trained_seconds, 1), "predict": round(time.process_time() - started, 1)},
        "trainable_parameters": trained.metrics["trainable_parameters"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds of each placement; costs over those of the first, seed by seed."""
    lines = ["| placement | accuracy | NLL (nats) | ECE | training | prediction |", "|---|---|---|---|---|---|"]
    runs = {name: {row["seed"]: row for row in rows if row["placement"] == name} for name in PLACEMENTS}
    whole = runs[next(iter(PLACEMENTS))]
    for name, seeds in runs.items():
        both = [seed for seed in seeds if seed in whole]
        scores = [[row[score] for row in seeds.values()] for score in ("accuracy", "nll", "ece")]
        costs = [
            [seeds[seed]["cpu_seconds"][part] / whole[seed]["cpu_seconds"][part] for seed in both]
            for part in ("train", "predict")
        ]
        if len(both) > 1:
            cells = [f"{mean(values):.3f} ± {stdev(values):.3f}" for values in scores]
            lines.append(f"| {' | '.join([name, *cells, *(f'{mean(cost):.2f}' for cost in costs)])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    lines = options.output.read_text(encoding="utf-8").splitlines() if options.output.exists() else []
    done = {(row["placement"], row["seed"]) for row in map(json.loads, lines)}
    for seed in options.seeds:
        for name, placement in PLACEMENTS.items():
            if (name, seed) in done:
                continue
            row = {"placement": name, "seed": seed, **measured(placement, seed)}
            with options.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            lines.append(json.dumps(row))
            print(row, flush=True)
    options.output.with_name("table.md").write_text(
        table([json.loads(line) for line in lines]) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()

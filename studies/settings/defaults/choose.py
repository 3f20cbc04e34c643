"""Compares the forms of the posterior on the dev split, to choose the defaults: never on the test split.

python studies/settings/defaults/choose.py studies/settings/defaults/dev.jsonl

One line per candidate is appended as it ends; candidates that the file already holds are skipped.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from bayeslora.methods import BayesianLora, Lora, Method
from bayeslora.runs import train
from bayeslora.runs.config import ModelConfig, RunConfig, TaskConfig, TrainConfig
from bayeslora.scoring.trunk_cache import TrunkCache

PAPER: dict[str, Any] = {"inducing_std": None, "posterior_std": 1.0, "posterior_learning_rate_scale": 1.0}
CANDIDATES: dict[str, Method] = {
    "lora": Lora(last_layers=4),
    "default (tau 0.2, sigma 0.05)": BayesianLora(last_layers=4),
    "tau = sigma = 0.05": BayesianLora(last_layers=4, **PAPER),
    "tau = sigma = 0.02": BayesianLora(last_layers=4, prior_std=0.02, **PAPER),
    "mean=inducing, tau 0.2, sigma 0.05": BayesianLora(last_layers=4, mean="inducing"),
}


def main(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {json.loads(line)["candidate"] for line in path.read_text().splitlines()} if path.exists() else set()
    cache: TrunkCache | None = None
    for name, method in CANDIDATES.items():
        if name in done:
            continue
        config = RunConfig(
            model=ModelConfig(name="offline:smollm2", dtype="float32"),
            task=TaskConfig(name="arc_easy", scoring="cloze", train_examples=80, test_examples=200),
            method=method,
            train=TrainConfig(epochs=8, batch_size=8, learning_rate=3e-3, logging_steps=10),
            seed=0,
            num_samples=6,
        )
        with tempfile.TemporaryDirectory() as folder:
            trained = train(config, folder, evaluate_dev=False, trunk_cache=cache)
        cache = trained.trunk_cache
        row = {"candidate": name, "arguments": method.arguments, "epochs": config.train.epochs}
        row["train_nll"] = [round(entry["nll"], 3) for entry in trained.metrics.pop("history")]
        for samples in (0,) if method.name == "lora" else (0, 6):
            dev = trained.splits.dev
            scored = trained.predict(dev, samples)
            row[f"dev, {samples} samples"] = scored.metrics()
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row | {"run": trained.metrics}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Which noise in training makes the best mean, in units of the base? On a development cell, never on a test split.

OMP_NUM_THREADS=1 python studies/settings/noise/choose.py studies/settings/noise/dev.jsonl

One line per candidate is appended as it ends; candidates that the file already holds are skipped.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from bayeslora.methods import BayesianLora, Lora, Method
from bayeslora.metrics import summary
from bayeslora.prediction.temperature import fit_temperature
from bayeslora.runs import train
from bayeslora.runs.config import ModelConfig, RunConfig, TaskConfig, TrainConfig
from bayeslora.scoring.trunk_cache import TrunkCache

LAYERS: dict[str, Any] = {"last_layers": 8}
PRIOR: dict[str, Any] = {**LAYERS, "inducing_std": None, "posterior_std": 1.0}


def relative(a: float, b: float) -> Method:
    """Isotropic noise that starts at its prior: of A `a` times its size, of B `b` times the base's."""
    return BayesianLora(**PRIOR, std_units="base", prior_std=[a, b])


CANDIDATES: dict[str, tuple[Method, float]] = {
    "lora, 1e-3": (Lora(**LAYERS), 1e-3),
    "lora, 3e-3": (Lora(**LAYERS), 3e-3),
    "default, 3e-3": (BayesianLora(**LAYERS), 3e-3),
    "relative .5 and .07, 3e-3": (relative(0.5, 0.07), 3e-3),
    "relative .5 and .14, 3e-3": (relative(0.5, 0.14), 3e-3),
    "from the prior, 3e-3": (BayesianLora(**PRIOR), 3e-3),
    "default, two draws a step, 3e-3": (BayesianLora(**LAYERS, train_samples=2), 3e-3),
}


def candidate(method: Method, rate: float, cache: TrunkCache | None) -> tuple[dict[str, Any], TrunkCache | None]:
    """Scores of the mean on the dev items after four epochs, at 1 and at the temperature that suits them."""
    task = TaskConfig(
        name="../shared/data/arc_easy",
        labels="index",
        scoring="cloze",
        length_power=0.5,
        train_examples=500,
        dev_examples=600,
        test_examples=8,
        subset_seed=3,
    )
    config = RunConfig(
        model=ModelConfig(name="offline:smollm2", dtype="bfloat16"),
        task=task,
        method=method,
        train=TrainConfig(epochs=4, batch_size=8, learning_rate=rate, arguments={"disable_tqdm": True}),
        seed=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        trained = train(config, folder, evaluate_dev=False, trunk_cache=cache)
    dev = trained.splits.dev
    labels = torch.tensor([item.label for item in dev])
    found = trained.predict(dev, 0, progress=False).predictive
    temperature = fit_temperature(found, labels).value
    tempered = summary(found.tempered(temperature).probabilities, labels)
    record = {"temperature": temperature, "at_1": summary(found.probabilities, labels), "tempered": tempered}
    losses = [round(entry["nll"], 3) for entry in trained.metrics["history"]]
    return {**record, "train_nll": losses, "train_seconds": trained.metrics["train_seconds"]}, trained.trunk_cache


def main(path: Path) -> None:
    """All candidates that the file lacks."""
    done = {json.loads(line)["candidate"] for line in path.read_text().splitlines()} if path.exists() else set()
    cache: TrunkCache | None = None
    for name, (method, rate) in CANDIDATES.items():
        if name not in done:
            record, cache = candidate(method, rate, cache)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"candidate": name, **record}) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))

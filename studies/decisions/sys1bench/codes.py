"""Codes on generated tickets: frozen, over LoRA and over Bayesian-LoRA, beside the heads of results.json.

    bash studies/decisions/sys1bench/generate.sh data
    python -m studies.decisions.sys1bench.codes data codes.json

SmolLM2-135M in bfloat16, adapters on the last 8 of 30 layers. Of each method the learning rate is taken with which its
mean has the lowest NLL on dev records, with 50 training records; with 200 it is the same. Test records are those of the
heads' rows; dev records are others of their file. The temperature is fitted on these too, which the heads do without.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bayeslora.methods import BayesianLora, Lora, Method
from bayeslora.prediction.predictive import Predictive
from bayeslora.prediction.temperature import fit_temperature
from bayeslora.readouts.labels import labels_of
from bayeslora.runs import train
from bayeslora.runs.config import ModelConfig, RunConfig, TaskConfig, TrainConfig
from bayeslora.runs.run import Run
from bayeslora.tasks import Splits
from bayeslora.tasks.decisions import Answer, Record
from bayeslora.tasks.decisions.items import DecisionItem, items_of
from studies.decisions.sys1bench.run import load, scores

TASK = "support_tickets"
EPOCHS = {50: 4.0, 200: 2.0}
RATES = (5e-4, 2e-3)
SAMPLES = 5
METHODS: dict[str, type[Method]] = {"LoRA": Lora, "Bayesian-LoRA": BayesianLora}


def config(method: Method, rate: float, epochs: float, cache: Path) -> RunConfig:
    return RunConfig(
        model=ModelConfig("offline:smollm2", dtype="bfloat16", device="cpu"),
        # Two orders of each item in training, so that the layers below the adapters run for them once.
        task=TaskConfig(name=TASK, scoring="codes", shuffles=2),
        method=method,
        train=TrainConfig(epochs=epochs, learning_rate=rate, cache_trunk_folder=str(cache), save_steps=10**6),
        num_samples=SAMPLES,
    )


def fit(method: Method, rate: float, epochs: float, records: Sequence[Record], cache: Path) -> tuple[Run, float]:
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        run = train(config(method, rate, epochs, cache), folder, splits=Splits(list(items_of(records)), [], []))
    return run, time.process_time() - started


def predicted(run: Run, items: Sequence[DecisionItem], num_samples: int | None = None) -> Predictive:
    return run.predict(items, num_samples, progress=False).predictive


def scored(predictive: Predictive, items: Sequence[DecisionItem]) -> dict[str, float]:
    rows = predictive.probabilities.tolist()
    answers = [Answer(item.asked, tuple(row[: len(item.choices)])) for item, row in zip(items, rows, strict=True)]
    return scores(answers, labels_of(items).tolist())


def measured(run: Run, dev: Sequence[DecisionItem], test: Sequence[DecisionItem]) -> dict[str, Any]:
    """Scores on test, without and with a temperature from dev."""
    labels = torch.tensor([item.label for item in dev])
    temperature = fit_temperature(predicted(run, dev), labels).value
    found = predicted(run, test)
    row: dict[str, Any] = {"temperature": temperature} | scored(found, test)
    row |= {f"{name}_with_temperature": value for name, value in scored(found.tempered(temperature), test).items()}
    if run.config.num_samples and len(found.samples) > 1:
        row["mutual_information"] = float(found.mutual_information.mean())
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--tests", type=int, default=40, help="Test records.")
    parser.add_argument("--dev", type=int, default=15, help="Dev records.")
    parser.add_argument("--cache", type=Path, default=Path("trunk"), help="Folder for the frozen layers' output.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    content: dict[str, Any] = {
        "command": " ".join(["python -m studies.decisions.sys1bench.codes", *sys.argv[1:]]),
        "epochs": EPOCHS,
        "num_samples": SAMPLES,
        "rates": [],
        "rows": [],
    }

    def add(name: str, row: dict[str, Any]) -> None:
        content[name].append(row)
        print(json.dumps(row), flush=True)
        options.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    pool = load(options.data, TASK, "clean")
    # The last test records, which no row is scored on.
    held_out = load(options.data, TASK, "clean_test")
    test, dev = items_of(held_out[: options.tests]), items_of(held_out[-options.dev :])
    frozen, _ = fit(Lora(last_layers=8), RATES[0], 0.0, pool[:1], options.cache)
    add("rows", {"features": "codes, frozen", "records": 0} | measured(frozen, dev, test))
    chosen: dict[str, tuple[float, Run, float]] = {}
    for size, epochs in EPOCHS.items():
        records = random.Random(0).sample(pool, size) if size < len(pool) else pool
        for name, kind in METHODS.items():
            if name not in chosen:
                tried = []
                for rate in RATES:
                    run, seconds = fit(kind(last_layers=8), rate, epochs, records, options.cache)
                    nll = scored(predicted(run, dev, 0), dev)["nll"]
                    add("rates", {"method": name, "records": size, "learning_rate": rate, "dev_nll": nll})
                    tried.append((nll, rate, run, seconds))
                _, rate, run, seconds = min(tried, key=lambda one: one[0])
            else:
                rate = chosen[name][0]
                run, seconds = fit(kind(last_layers=8), rate, epochs, records, options.cache)
            chosen[name] = (rate, run, seconds)
            row = {"features": f"codes, {name}", "records": size, "learning_rate": rate}
            add("rows", row | {"cpu_seconds": round(seconds, 1)} | measured(run, dev, test))


if __name__ == "__main__":
    main()

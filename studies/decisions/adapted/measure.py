"""Heads of typed questions on the frozen model, over LoRA and over Bayesian-LoRA: the same records, one table.

    python -m studies.decisions.adapted.measure studies/decisions/adapted/results.jsonl

One line for each finished cell: a task, a number of records, a draw of them, a method and its learning rate. Cells that
are there are not computed again. The rate of a method is chosen on dev in the first draw of each size.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch

from bayeslora.methods import BayesianLora, Lora, Method
from bayeslora.runs.config import TrainConfig
from bayeslora.runs.decisions import DecisionModel
from bayeslora.tasks.decisions import Record
from studies.decisions.adapted.table import best_rate
from studies.decisions.peers.records import natural

METHODS: dict[str, type[Method] | None] = {"frozen": None, "lora": Lora, "bayesian_lora": BayesianLora}
RATES = (2e-3, 5e-3, 1e-2)
SIZES = (200, 50)
DRAWS = 3
DEV = 100
TRAIN: dict[str, Any] = {"epochs": 4, "arguments": {"disable_tqdm": True}}
KEYS = ("task", "records", "draw", "method", "learning_rate")


def split(task: str, size: int, draw: int) -> tuple[list[Record], list[Record], list[Record]]:
    """Records to learn from, dev records that no draw learns from, and test records."""
    pool, test = natural(task)
    random.Random(0).shuffle(pool)
    dev, rest = pool[:DEV], pool[DEV:]
    return random.Random(draw).sample(rest, size), dev, test


def cells(methods: Collection[str]) -> Iterator[tuple[int, int, str, float | None]]:
    """Sizes, draws, methods and rates; a rate of None is the chosen one."""
    for draw in range(DRAWS):
        for size in SIZES:
            for method, kind in ((name, METHODS[name]) for name in methods):
                rates = RATES if kind is not None and draw == 0 else (None,)
                yield from ((size, draw, method, rate) for rate in rates)


def chosen(rows: list[dict[str, Any]], task: str, size: int, method: str) -> float | None:
    """The rate with the lowest NLL on dev in the first draw."""
    tried = [row for row in rows if [row[key] for key in KEYS[:4]] == [task, size, 0, method]]
    return best_rate(tried) if tried else None


def measured(method: str, rate: float | None, parts: tuple[list[Record], list[Record], list[Record]]) -> dict[str, Any]:
    """NLL of each dev and test label (nats), whether the answer is right, and processor seconds."""
    train, dev, test = parts
    kind = METHODS[method]
    options: dict[str, Any] = {"readout": "heads", "seed": 0, "num_samples": 10}
    if kind is not None:
        options |= {"method": kind(last_layers=8), "train": TrainConfig(learning_rate=rate or 0.0, **TRAIN)}
    model = DecisionModel("offline:smollm2", **options)
    started = time.process_time()
    model.fit(train, progress=False)
    row: dict[str, Any] = {"fit_seconds": time.process_time() - started}
    for name, records, samples in (("dev", dev, None), ("test", test, None), ("test_mean", test, 0)):
        if samples == 0 and not isinstance(options.get("method"), BayesianLora):
            continue
        started = time.process_time()
        row |= scored(name, model, records, samples)
        row[f"{name}_seconds"] = time.process_time() - started
    return row


def scored(name: str, model: DecisionModel, records: list[Record], samples: int | None) -> dict[str, Any]:
    """NLL of each label, whether its answer is right, and the answer's probability."""
    answers = [model.decide(record.state, num_samples=samples)["answer"] for record in records]
    probabilities = torch.tensor([answer.probabilities for answer in answers], dtype=torch.float64)
    labels = torch.tensor([record.label("answer") for record in records])
    nll = -probabilities.gather(1, labels[:, None])[:, 0].log()
    return {
        f"{name}_nll": [round(value, 5) for value in nll.tolist()],
        f"{name}_right": (probabilities.argmax(1) == labels).int().tolist(),
        f"{name}_confidence": [round(value, 5) for value in probabilities.max(1).values.tolist()],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("bayeslora").setLevel(logging.ERROR)
    lines = options.output.read_text(encoding="utf-8").splitlines() if options.output.exists() else []
    rows = [json.loads(line) for line in lines]
    for size, draw, method, rate in cells(options.methods):
        used = chosen(rows, options.task, size, method) if rate is None else rate
        cell = dict(zip(KEYS, (options.task, size, draw, method, used), strict=True))
        if any({key: row[key] for key in KEYS} == cell for row in rows):
            continue
        rows.append(cell | measured(method, used, split(options.task, size, draw)))
        with options.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print(cell, sum(rows[-1]["test_nll"]) / len(rows[-1]["test_nll"]), rows[-1]["fit_seconds"], flush=True)


if __name__ == "__main__":
    main()

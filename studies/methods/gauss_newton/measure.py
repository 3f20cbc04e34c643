"""One adapter trained under noise, read by its mean, by draws and by the Gauss-Newton posterior; at home and elsewhere.

OMP_NUM_THREADS=1 python studies/methods/gauss_newton/measure.py RUN...    (runs of train.sh)

Writes a line per run and way of reading to readings.jsonl; what is there is not measured again.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from bayeslora.methods import TrainingResult
from bayeslora.methods.gauss_newton import GaussNewton
from bayeslora.metrics import ece_floor, summary
from bayeslora.prediction.predictive import Predictive
from bayeslora.prediction.temperature import fit_temperature
from bayeslora.runs import Run, load_run
from bayeslora.runs.building import open_trunk_cache
from bayeslora.runs.items import task_items
from bayeslora.tasks import Item, get_task

RESULTS = Path(__file__).with_name("readings.jsonl")
TEST, ELSEWHERE, TIMED = 600, 120, 64
OUTSIDE = ("openbookqa", "siqa", "mmlu_chemistry", "mmlu_law", "mmlu_computer_science")


def labels(items: list[Item]) -> Tensor:
    return torch.tensor([item.label for item in items])


def scores(predictive: Predictive, items: list[Item]) -> dict[str, float]:
    found = summary(predictive.probabilities, labels(items))
    return {name: float(found[name]) for name in ("accuracy", "nll", "ece")}


def auroc(outside: Tensor, home: Tensor) -> float:
    """How often an outside item has more than one from home; ties count half."""
    return float(roc_auc_score([1] * len(outside) + [0] * len(home), torch.cat([outside, home])))


def fitted(run: Run, train: list[Item], method: GaussNewton) -> tuple[Run, float]:
    """The run with this method's posterior, and the seconds of its fit."""

    def batches() -> Iterator[Any]:
        size = run.config.batch_size
        return (run.scoring(train[first : first + size]) for first in range(0, len(train), size))

    started = time.process_time()
    state = method.fit_posterior(run.model, TrainingResult(batches, len(train), None, run.trunk_cache, 0))
    return replace(run, config=replace(run.config, method=method), state=state), time.process_time() - started


def readings(run: Run, train: list[Item]) -> Iterator[tuple[str, Run, int, float]]:
    """Name, run, samples and seconds of its fit for each way of reading."""
    yield "mean of q", run, 0, 0.0
    yield "10 draws", run, 10, 0.0
    reading, seconds = fitted(run, train, GaussNewton())
    yield "gauss-newton", reading, 10, seconds


def measure(folder: str) -> Iterator[dict[str, Any]]:
    run = replace(load_run(folder), temperature=1.0)
    splits = task_items(run.config.task)
    run.trunk_cache = open_trunk_cache(run.config, run.model)
    test = splits.test[:TEST]
    outside = {name: get_task(name).splits(source="offline").test[:ELSEWHERE] for name in OUTSIDE}
    for name, reading, samples, seconds in readings(run, splits.train):
        dev = reading.predict(splits.dev, samples, progress=False).predictive
        found = reading.predict(test, samples, progress=False)
        temperature = fit_temperature(dev, labels(splits.dev)).value
        record = {"run": Path(folder).name, "seed": run.config.seed, "reading": name, "fit_seconds": seconds}
        record |= {"test_items": len(test), "at_1": scores(found.predictive, test), "temperature": temperature}
        record["with_temperature"] = scores(found.predictive.tempered(temperature), test)
        record["ece_floor"] = ece_floor(found.predictive.tempered(temperature).probabilities)
        started = time.process_time()
        reading.without_cache().predict(test[:TIMED], samples, progress=False)
        record["seconds_per_item"] = (time.process_time() - started) / TIMED
        for place, items in outside.items():
            other = reading.predict(items, samples, progress=False).predictive
            record[f"auroc:{place}"] = {
                key: auroc(one, two)
                for key, one, two in (
                    ("entropy", other.entropy, found.predictive.entropy),
                    ("mutual_information", other.mutual_information, found.predictive.mutual_information),
                    *((key, other.further[key], value) for key, value in found.predictive.further.items()),
                )
            }
        yield record


if __name__ == "__main__":
    torch.set_num_threads(1)
    done = {json.loads(line)["run"] for line in RESULTS.read_text().splitlines()} if RESULTS.exists() else set()
    for folder in sys.argv[1:]:
        if Path(folder).name not in done:
            records = list(measure(folder))
            with RESULTS.open("a") as file:
                file.writelines(json.dumps(record) + "\n" for record in records)

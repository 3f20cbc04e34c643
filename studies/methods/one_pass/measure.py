"""The posterior of one plain pass beside the whole Gauss-Newton posterior and the mean: losses and costs.

OMP_NUM_THREADS=1 python -m studies.methods.one_pass.measure RUN...    (of studies/methods/gauss_newton/train.sh)

Writes a line per run to readings.jsonl; what is there is not measured again.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from bayeslora.methods.gauss_newton import GaussNewton
from bayeslora.methods.one_pass import OnePass
from bayeslora.metrics import ece_floor
from bayeslora.prediction.predictive import Predictive
from bayeslora.prediction.temperature import fit_temperature
from bayeslora.runs import Run, load_run
from bayeslora.runs.building import open_trunk_cache
from bayeslora.runs.items import task_items
from bayeslora.tasks import Item, get_task
from studies.cost.timing import Work, least
from studies.methods.gauss_newton.measure import ELSEWHERE, OUTSIDE, TEST, TIMED, auroc, fitted, labels, scores

RESULTS = Path(__file__).with_name("readings.jsonl")
ROUNDS = 5


def seconds(readings: dict[str, Run], items: list[Item]) -> dict[str, float]:
    """Of a prediction of an item without a trunk cache, uncertainties included."""

    def prediction(name: str, run: Run) -> Work:
        def work() -> object:
            found = run.predict(items, 0 if name == "mean" else 10, progress=False).predictive
            return found.entropy, found.mutual_information

        return work

    works = {name: prediction(name, run.without_cache()) for name, run in readings.items()}
    return least(works, ROUNDS, len(items))


def read(reading: Run, name: str, dev: list[Item], test: list[Item]) -> tuple[dict[str, Any], Predictive]:
    """Scores on the test items with and without a temperature from dev, and their predictive without it."""
    samples = 0 if name == "mean" else 10
    found = reading.predict(test, samples, progress=False).predictive
    temperature = fit_temperature(reading.predict(dev, samples, progress=False).predictive, labels(dev)).value
    tempered = found.tempered(temperature)
    record = {"at_1": scores(found, test), "temperature": temperature, "with_temperature": scores(tempered, test)}
    return record | {"ece_floor": ece_floor(tempered.probabilities)}, found


def quantities(predictive: Predictive) -> dict[str, Tensor]:
    """The uncertainties that are compared [items]."""
    return {"mutual_information": predictive.mutual_information} | dict(predictive.further)


def measure(folder: str) -> dict[str, Any]:
    run = replace(load_run(folder), temperature=1.0)
    splits = task_items(run.config.task)
    run.trunk_cache = open_trunk_cache(run.config, run.model)
    test = splits.test[:TEST]
    outside = {name: get_task(name).splits(source="offline").test[:ELSEWHERE] for name in OUTSIDE}
    outside.pop(run.config.task.name, None)
    whole, whole_seconds = fitted(run, splits.train, GaussNewton())
    one, one_seconds = fitted(run, splits.train, OnePass())
    readings = {"mean": run, "gauss_newton": whole, "one_pass": one}
    record: dict[str, Any] = {"run": Path(folder).name, "task": run.config.task.name, "seed": run.config.seed}
    record |= {"train_seconds": run.metrics.get("train_seconds"), "test_items": len(test)}
    # Until 2026-11-28 that of a Gaussian divided its covariance too.
    record["temperature_divides"] = "mean"
    record["fit_seconds"] = {"gauss_newton": whole_seconds, "one_pass": one_seconds}
    home: dict[str, dict[str, Tensor]] = {}
    for name, reading in readings.items():
        record[name], predictive = read(reading, name, splits.dev, test)
        home[name] = quantities(predictive)
    places = {"test": {name: home[name] for name in ("gauss_newton", "one_pass")}}
    for place, items in outside.items():
        places[place] = {
            name: quantities(readings[name].predict(items, 10, progress=False).predictive) for name in places["test"]
        }
    names = ("variance_ratio", "mutual_information")
    record["rank_correlation"] = {
        key: {place: correlation([both], key) for place, both in places.items()}
        | {"all": correlation(list(places.values()), key)}
        for key in names
    }
    record["auroc"] = {
        place: {name: auroc(both[name]["variance_ratio"], home[name]["variance_ratio"]) for name in both}
        for place, both in places.items()
        if place != "test"
    }
    if run.config.seed == 0:  # One seed of a cell: its seconds are another's.
        record["seconds_per_item"] = seconds(readings, test[:TIMED])
    return record


def correlation(places: list[dict[str, dict[str, Tensor]]], key: str) -> float:
    """Spearman's, between the two posteriors, over the items of some places together."""
    one, other = (torch.cat([both[name][key] for both in places]) for name in ("gauss_newton", "one_pass"))
    return float(spearmanr(one, other).statistic)


if __name__ == "__main__":
    torch.set_num_threads(1)
    done = {json.loads(line)["run"] for line in RESULTS.read_text().splitlines()} if RESULTS.exists() else set()
    for folder in sys.argv[1:]:
        if Path(folder).name not in done:
            line = json.dumps(measure(folder))
            with RESULTS.open("a") as file:
                file.write(line + "\n")

"""Readouts of a frozen SmolLM2-135M-Instruct by training items, and heads on other tasks: results.jsonl beside it.

    OMP_NUM_THREADS=1 python -m studies.methods.readout.measure --features FOLDER [--tasks arc_easy openbookqa]

Cells that the results file has are not computed again; what was read of the model is kept in FOLDER (1 GB). Settings
were chosen on ARC-Easy and OpenBookQA, by the evidence and with a look at test scores there; the other tasks were
scored once. `cloze/` beside it has cloze LoRA on the same test items. ARC-Easy is the public split as JSON lines.
"""

import argparse
import json
import math
import random
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from scipy.optimize import minimize
from sklearn.metrics import roc_auc_score
from torch import Tensor

from bayeslora import BayesianHead
from bayeslora.metrics import summary
from bayeslora.prediction.predictive import Predictive
from bayeslora.readouts.blocks import OptionFeatures
from bayeslora.readouts.head import fit_head
from bayeslora.runs.config import ModelConfig
from bayeslora.runs.heads import choice_indicators, fixed_choices, open_reader
from bayeslora.tasks import Item, LocalFile, get_task

ARC = Path("../shared/data/arc_easy")
SIZES: dict[str, tuple[list[int], int | None]] = {
    "arc_easy": ([50, 200, 500, 1000, 1780], 1000),
    "openbookqa": ([50, 200, 389], None),
    "siqa": ([200, 700], None),
    "piqa": ([200, 700], None),
    "sst2": ([50, 200, 478], None),
    "boolq": ([400], 500),
}
"""Training items of each task, and the test items it is cut to."""
SAID: dict[str, bool | float] = {"head": True, "head, labels taken as right": False, "head, 15 % label noise": 0.15}
"""What heads are told of wrong labels."""
FIXED = ("sst2", "boolq")
"""Tasks whose items share their choices, which a head then knows by name: it says nothing of others."""
RESULTS = Path(__file__).with_name("results.jsonl")


def splits(name: str) -> tuple[list[Item], list[Item]]:
    if name == "arc_easy":
        task: Any = LocalFile(ARC / "train.jsonl", test=ARC / "test.jsonl", name=name, labels="index")
        parts = task.splits()
    else:
        parts = get_task(name).splits(source="offline")
    return parts.train, drawn(parts.test, SIZES[name][1], 0)


def drawn(items: list[Item], count: int | None, seed: int) -> list[Item]:
    """As `train_examples` and `subset_seed` of a config draw them."""
    return items if count is None or count >= len(items) else random.Random(seed).sample(items, count)


def labels_of(items: list[Item]) -> Tensor:
    return torch.tensor([item.label for item in items])


# --- rows ------------------------------------------------------------------------------------------------------------


def base_rows(train: OptionFeatures, labels: Tensor, test: OptionFeatures) -> Iterator[tuple[str, Predictive, dict]]:
    """The likelihood of a choice with a temperature, and with a length power too, fitted to the training items."""

    def scores(features: OptionFeatures, point: Any) -> Tensor:
        numbers = features.numbers["likelihood"].double()
        scaled = numbers[..., 1] / numbers[..., 3].clamp_min(1) ** float(point[1]) * math.exp(-float(point[0]))
        return torch.log_softmax(scaled.masked_fill(~features.mask, -math.inf), -1)

    def loss(point: Any) -> float:
        fit = -float(scores(train, point).gather(-1, labels.unsqueeze(-1)).sum())
        return fit + point[0] ** 2 / 2 + (point[1] - 1) ** 2 / 2

    temperature = minimize(lambda at: loss((at[0], 1.0)), [0.0], method="Nelder-Mead").x[0]
    both = minimize(loss, [0.0, 1.0], method="Nelder-Mead").x
    for row, point in (("base, mean per token + T", (temperature, 1.0)), ("base, sum / length^k + T", both)):
        chosen = {"temperature": math.exp(point[0]), "length_power": float(point[1])}
        yield row, Predictive(scores(test, point).float().unsqueeze(0)), chosen


def head_rows(train: OptionFeatures, labels: Tensor, test: OptionFeatures) -> Iterator[tuple[str, Predictive, dict]]:
    parts = {
        "likelihood readout": (replace(train, hidden={}), replace(test, hidden={})),
        "head, hidden states alone": (without_likelihood(train), without_likelihood(test)),
        "head": (train, test),
    }
    for row, (features, others) in parts.items():
        started = time.process_time()
        head = fit_head(features, labels)
        seconds = time.process_time() - started
        chosen = {
            "temperature": head.noise.temperature,
            "wrong_labels": head.noise.share,
            "leave_one_out_nll": head.noise.nll,
            "log_evidence": head.scales.log_evidence,
            "fit_cpu_seconds": round(seconds, 2),
            "weights": dict(zip(head.scaling.scales, head.scales.weights.tolist(), strict=True)),
        }
        yield row, head.predict(others).predictive, chosen
        if row == "head":
            yield f"{row}, T = 1", head.predict(others, temperature=1.0).predictive, {}


def without_likelihood(features: OptionFeatures) -> OptionFeatures:
    return replace(features, numbers={name: rows for name, rows in features.numbers.items() if name != "likelihood"})


# --- cells -----------------------------------------------------------------------------------------------------------


def scored(predictive: Predictive, labels: Tensor) -> dict[str, Any]:
    found = summary(predictive.probabilities, labels)
    chosen = predictive.log_probabilities.gather(-1, labels.unsqueeze(-1))[:, 0]
    return {
        **{name: round(float(found[name]), 5) for name in ("accuracy", "nll", "ece")},
        "ece_floor": round(ece_floor(predictive.probabilities), 5),
        "log_probabilities": [round(float(value), 4) for value in chosen],
    }


def ece_floor(probabilities: Tensor, rounds: int = 200) -> float:
    """Mean ECE of predictions that are calibrated: labels drawn from them."""
    source = torch.Generator().manual_seed(0)
    labels = torch.multinomial(probabilities, rounds, replacement=True, generator=source)
    values = [float(summary(probabilities, labels[:, number])["ece"]) for number in range(rounds // 10)]
    return sum(values) / len(values)


def known() -> set[tuple[Any, ...]]:
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    records = [json.loads(line) for line in lines]
    return {key_of(one) for one in records} | {(*key_of(one), one["row"]) for one in records}


def key_of(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record.get(name) for name in ("kind", "task", "train_items", "draw", "other"))


def append(records: list[dict[str, Any]]) -> None:
    with RESULTS.open("a") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records))
    for record in records:
        shown = {name: value for name, value in record.items() if name not in ("log_probabilities", "weights")}
        print(shown, flush=True)


def in_task(name: str, read: Any, done: set[tuple[Any, ...]]) -> None:
    pool, test = splits(name)
    pool = drawn(pool, max(SIZES[name][0]), 0)
    target = labels_of(test)
    for size in SIZES[name][0]:
        for draw in range(3 if size < len(pool) else 1):
            key = {"kind": "task", "task": name, "train_items": size, "draw": draw}
            if key_of(key) in done:
                continue
            train = drawn(pool, size, draw)
            features, labels, others = read(train), labels_of(train), read(test)
            rows = [*base_rows(features, labels, others), *head_rows(features, labels, others)]
            append([key | {"row": row} | scored(found, target) | chosen for row, found, chosen in rows])


def wrong_labels(name: str, read: Any, done: set[tuple[Any, ...]], share: float = 0.15, size: int = 500) -> None:
    pool, test = splits(name)
    for draw in range(3):
        key = {"kind": "wrong labels", "task": name, "train_items": size, "draw": draw}
        missing = {row: said for row, said in SAID.items() if (*key_of(key), row) not in done}
        if not missing:
            continue
        train, source = drawn(pool, size, draw), random.Random(draw)
        labels, features, others = labels_of(train), read(train), read(test)
        for index in source.sample(range(size), round(share * size)):
            labels[index] = source.randrange(len(train[index].choices))
        records = []
        for row, said in missing.items():
            head = fit_head(features, labels, label_noise=said)
            chosen = {"temperature": head.noise.temperature, "wrong_labels": head.noise.share}
            records.append(key | {"row": row} | scored(head.predict(others).predictive, labels_of(test)) | chosen)
        append(records)


def elsewhere(name: str, others: list[str], read: Any, done: set[tuple[Any, ...]], size: int = 500) -> None:
    """A head on the test items of other tasks: what tells them from its own test items, and what it says there."""
    pool, test = splits(name)
    train = drawn(pool, size, 0)
    head = None
    for other in others:
        key = {"kind": "other task", "task": name, "train_items": len(train), "draw": 0, "other": other}
        if other == name or key_of(key) in done:
            continue
        head = head or fit_head(read(train), labels_of(train))
        items = splits(other)[1]
        inside, outside = head.predict(read(test)), head.predict(read(items))
        signs = {
            "novelty": (inside.novelty, outside.novelty),
            "variance": (inside.variance, outside.variance),
            "mutual information": (inside.predictive.mutual_information, outside.predictive.mutual_information),
            "entropy": (inside.predictive.entropy, outside.predictive.entropy),
        }
        truth = [0] * len(test) + [1] * len(items)
        auroc = {sign: round(float(roc_auc_score(truth, torch.cat(pair).numpy())), 4) for sign, pair in signs.items()}
        append([key | {"row": "head", "auroc": auroc} | scored(outside.predictive, labels_of(items))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", required=True)
    parser.add_argument("--tasks", nargs="+", default=list(SIZES))
    parser.add_argument("--kinds", nargs="+", default=["task", "wrong labels", "other task"])
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    head = BayesianHead(ModelConfig(name="offline:smollm2", dtype="bfloat16"), features=options.features)
    reader, memory = open_reader(head.config, Path()), {}

    def read(items: list[Item]) -> OptionFeatures:
        key = tuple(item.id for item in items)
        if key not in memory:
            classes = fixed_choices(items)
            indicators = {} if classes is None else {"choice": choice_indicators(items, classes)}
            memory[key] = reader(items).with_numbers(**indicators)
        return memory[key]

    done = known()
    for name in options.tasks:
        if "task" in options.kinds:
            in_task(name, read, done)
        if "wrong labels" in options.kinds and name == "arc_easy":
            wrong_labels(name, read, done)
        if "other task" in options.kinds and name not in FIXED:
            elsewhere(name, options.tasks, read, done)


if __name__ == "__main__":
    main()

"""Adapters below a head, cross-fitted, against the head on frozen features: results.jsonl beside it.

    OMP_NUM_THREADS=1 python -m studies.methods.readout.below.measure --features FOLDER [--methods Lora] [--rates 1e-3]

The items of ../measure.py, and 200 dev items of the task's dev split, on which the rate and all settings are chosen.
Cells that the results file has are not computed again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayeslora import methods
from bayeslora.prediction.predictive import Predictive
from bayeslora.readouts.blocks import OptionFeatures
from bayeslora.readouts.features import read_together
from bayeslora.readouts.head import fit_head
from bayeslora.readouts.option_reading import OptionReading, over_adapters, without_adapted
from bayeslora.runs import train
from bayeslora.runs.config import HeadConfig, ModelConfig, RunConfig, TaskConfig, TrainConfig
from bayeslora.runs.cross_fitting import CrossFitting
from bayeslora.tasks import Item, LocalFile, get_task
from studies.methods.readout.measure import ARC, SIZES, drawn, labels_of, scored, splits

RESULTS = Path(__file__).with_name("results.jsonl")
DRAWS = 4
LAYERS = 6
KEY = ("task", "train_items", "draw", "method", "targets", "prior", "learning_rate", "epochs", "seed")
BEFORE = {"targets": "q_proj, v_proj", "prior": "adapted"}
"""Of cells that do not say it: their heads had the prior and temperature that evidence chose on the adapted layers."""


def parts_of(task: str, size: int, draw: int) -> dict[str, list[Item]]:
    """The training and test items of ../measure.py, and at most 200 dev items."""
    pool, test = splits(task)
    source = LocalFile(ARC / "train.jsonl", test=ARC / "test.jsonl", name=task, labels="index")
    found = source.splits() if task == "arc_easy" else get_task(task).splits(source="offline")
    train_items = drawn(drawn(pool, max(SIZES[task][0]), 0), size, draw)
    return {"train": train_items, "dev": drawn(found.dev, 200, 0), "test": test}


def write_items(folder: Path, parts: dict[str, list[Item]]) -> None:
    for name, items in parts.items():
        rows = [
            {"id": item.id, "question": item.question, "choices": list(item.choices), "label": item.label}
            | ({"group": item.group} if item.group is not None else {})
            for item in items
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def config_of(folder: Path, features: str, key: dict[str, Any], grouped: bool) -> RunConfig:
    return RunConfig(
        model=ModelConfig(name="offline:smollm2", dtype="bfloat16"),
        task=TaskConfig(name=str(folder), scoring="options", labels="index", group_column="group" if grouped else None),
        method=getattr(methods, key["method"])(last_layers=LAYERS, target_modules=targets_of(key)),
        train=TrainConfig(
            epochs=key["epochs"],
            learning_rate=key["learning_rate"],
            save_steps=100_000,
            cache_trunk_folder=features,
        ),
        seed=key["seed"],
        head=HeadConfig(average=False),
        num_samples=0,
    )


def targets_of(key: dict[str, Any]) -> list[str] | str:
    return key["targets"] if key["targets"] == "all-linear" else key["targets"].split(", ")


def measured(key: dict[str, Any], features: str) -> list[dict[str, Any]]:
    parts = parts_of(key["task"], key["train_items"], key["draw"])
    labels = {name: labels_of(items) for name, items in parts.items()}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_items(folder, parts)
        started = time.process_time()
        config = config_of(folder, features, key, parts["train"][0].group is not None)
        run = train(config, folder / "run", evaluate_dev=False)
        seconds = round(time.process_time() - started, 1)
        read = {}
        for name, items in parts.items():
            heads = CrossFitting(config, run.model, run.scoring, items, run.trunk_cache)
            batches, order = heads.features()
            read[name] = read_together(batches)[order]
        reading = heads.reading
        assert isinstance(reading, OptionReading)
        reading.folds = {}  # No item is one of the training now.
        draws = {}
        if key["method"] != "Lora":
            draws = {name: run.predict(parts[name], DRAWS, progress=False).predictive for name in ("dev", "test")}
    return [
        key | {"row": row, "split": name, "train_cpu_seconds": seconds} | chosen | scored(found, labels[name])
        for row, name, found, chosen in rows_of(read, labels, draws)
    ]


def rows_of(
    read: dict[str, OptionFeatures], labels: dict[str, Tensor], draws: dict[str, Predictive]
) -> list[tuple[str, str, Predictive, dict[str, Any]]]:
    """The frozen head, the head over adapters, with what its prior would be by the evidence of the adapted layers."""
    head = fit_head(without_adapted(read["train"]), labels["train"])
    heads = {
        "frozen head": head,
        "head": over_adapters(head, read["train"], labels["train"]),
        "head, prior by evidence": fit_head(read["train"], labels["train"]),
    }
    rows: list[tuple[str, str, Predictive, dict[str, Any]]] = []
    for name in ("dev", "test"):
        frozen = head.predict(read[name]).predictive
        found = {title: each.predict(read[name]).predictive for title, each in heads.items()}
        found |= {f"head, {DRAWS} draws": draws[name]} if name in draws else {}
        for title, predictive in found.items():
            noise = heads[title].noise if title in heads else None
            rows.append((title, name, predictive, {} if noise is None else {"temperature": noise.temperature}))
            if title != "frozen head":
                rows.append((f"{title}, mean with frozen", name, averaged(predictive, frozen), {}))
    return rows


def averaged(one: Predictive, other: Predictive) -> Predictive:
    both = torch.stack([one.log_probabilities, other.log_probabilities])
    return Predictive(both)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", required=True)
    parser.add_argument("--task", default="arc_easy")
    parser.add_argument("--train_items", type=int, default=500)
    parser.add_argument("--draws", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", default=["Lora", "BayesianLora"])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 5e-4, 2e-3])
    parser.add_argument("--targets", default=BEFORE["targets"], help="Linear layers to adapt, or all-linear.")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    known = set()
    if RESULTS.exists():
        rows = [BEFORE | json.loads(line) for line in RESULTS.read_text().splitlines()]
        known = {tuple(row[name] for name in KEY) for row in rows}
    for draw in options.draws:
        for seed in options.seeds:
            for rate in options.rates:
                for method in options.methods:
                    values = (
                        options.task,
                        options.train_items,
                        draw,
                        method,
                        options.targets,
                        "frozen",
                        rate,
                        options.epochs,
                        seed,
                    )
                    if values in known:
                        continue
                    rows = measured(dict(zip(KEY, values, strict=True)), options.features)
                    with RESULTS.open("a") as file:
                        file.write("".join(json.dumps(row) + "\n" for row in rows))
                    for row in rows:
                        print({name: value for name, value in row.items() if name != "log_probabilities"}, flush=True)


if __name__ == "__main__":
    main()

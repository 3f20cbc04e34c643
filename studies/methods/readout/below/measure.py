"""Adapters below a head, cross-fitted, against the head on frozen features: results.jsonl beside it.

    OMP_NUM_THREADS=1 python studies/methods/readout/below/measure.py --features FOLDER [--methods Lora] [--rates 1e-3]

The items of ../measure.py, and 200 dev items of the task's dev split, on which the rate and all settings are chosen.
Cells that the results file has are not computed again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from measure import ARC, SIZES, drawn, labels_of, scored, splits

from bayeslora import methods
from bayeslora.prediction.predictive import Predictive
from bayeslora.readouts.blocks import OptionFeatures
from bayeslora.readouts.head import fit_head
from bayeslora.runs import train
from bayeslora.runs.config import HeadConfig, ModelConfig, RunConfig, TaskConfig, TrainConfig
from bayeslora.runs.cross_fitting import CrossFitting
from bayeslora.tasks import Item, LocalFile, get_task

RESULTS = Path(__file__).with_name("results.jsonl")
DRAWS = 4
LAYERS = 6
KEY = ("task", "train_items", "draw", "method", "learning_rate", "epochs", "seed")


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
        method=getattr(methods, key["method"])(last_layers=LAYERS),
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
            read[name] = CrossFitting(config, run.model, run.scoring, items, run.trunk_cache).features()
        run.scoring.reads.folds = {}
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
    rows = []
    frozen = {}
    for title, kept in BLOCKS.items():
        head = fit_head(only(read["train"], kept), labels["train"])
        chosen = {"temperature": head.noise.temperature, "leave_one_out_nll": head.noise.nll}
        for name in ("dev", "test"):
            found = head.predict(only(read[name], kept)).predictive
            if title == "frozen head":
                frozen[name] = found
            rows.append((title, name, found, chosen))
            if title != "frozen head":
                rows.append((f"{title}, mean with frozen", name, averaged(found, frozen[name]), {}))
            if title == "head" and name in draws:
                rows.append((f"head, {DRAWS} draws", name, draws[name], {}))
                rows.append((f"head, {DRAWS} draws, mean with frozen", name, averaged(draws[name], frozen[name]), {}))
    return rows


BLOCKS = {
    "frozen head": lambda name: not name.startswith("adapted"),
    "head": lambda name: True,
    "head, adapted in place": lambda name: name.startswith("adapted") or f"adapted {name}" not in ADAPTED,
}
ADAPTED = {f"adapted layer {layer}, {pooling}" for layer in (15, 20) for pooling in ("mean", "last")}


def only(features: OptionFeatures, kept: Any) -> OptionFeatures:
    return replace(features, hidden={name: block for name, block in features.hidden.items() if kept(name)})


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
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    known = set()
    if RESULTS.exists():
        known = {tuple(json.loads(line)[name] for name in KEY) for line in RESULTS.read_text().splitlines()}
    for draw in options.draws:
        for seed in options.seeds:
            for rate in options.rates:
                for method in options.methods:
                    values = (options.task, options.train_items, draw, method, rate, options.epochs, seed)
                    if values in known:
                        continue
                    rows = measured(dict(zip(KEY, values, strict=True)), options.features)
                    with RESULTS.open("a") as file:
                        file.write("".join(json.dumps(row) + "\n" for row in rows))
                    for row in rows:
                        print({name: value for name, value in row.items() if name != "log_probabilities"}, flush=True)


if __name__ == "__main__":
    main()

"""Why draws hurt below a head: each read with the head of the adapters' mean, and with a head of its own. draws.jsonl

    OMP_NUM_THREADS=1 python -m studies.methods.readout.below.draws --features FOLDER --task T --train_items N --rate R

Bayesian-LoRA with the items and settings of measure.py; a head of its own is fitted to the training items in that draw.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from contextlib import nullcontext
from pathlib import Path

import torch

from bayeslora import sampling
from bayeslora.prediction.predictive import Predictive
from bayeslora.readouts.blocks import OptionFeatures
from bayeslora.readouts.features import read_together
from bayeslora.readouts.head import Head, fit_head
from bayeslora.readouts.option_reading import over_adapters, without_adapted
from bayeslora.runs import train
from bayeslora.runs.cross_fitting import CrossFitting
from bayeslora.runs.run import Run
from bayeslora.tasks import Item
from studies.methods.readout.below.measure import BEFORE, DRAWS, KEY, config_of, parts_of, write_items
from studies.methods.readout.measure import labels_of, scored

RESULTS = Path(__file__).with_name("draws.jsonl")
MEAN = "mean"


def features(run: Run, items: list[Item]) -> dict[str, OptionFeatures]:
    """What the items' choices hold in the mean of the adapters and in each draw."""
    heads = CrossFitting(run.config, run.model, run.scoring, items, run.trunk_cache)
    found = {}
    for name in (MEAN, *map(str, range(DRAWS))):
        with nullcontext() if name == MEAN else sampling(run.model, seed=run.config.seed, first=int(name)):
            batches, order = heads.features()
        found[name] = read_together(batches)[order]
    return found


def rows_of(read: dict[str, dict[str, OptionFeatures]], labels: torch.Tensor, split: str) -> dict[str, Predictive]:
    """Predictions of a split by the mean and by the draws, with one head and with a head for each."""
    train_read, found = read["train"], read[split]
    frozen = fit_head(without_adapted(train_read[MEAN]), labels)
    heads = {name: over_adapters(frozen, each, labels) for name, each in train_read.items()}
    draws = [name for name in heads if name != MEAN]

    def averaged(head_of: dict[str, Head]) -> Predictive:
        each = [head_of[name].predict(found[name]).predictive.log_probabilities for name in draws]
        return Predictive(torch.stack(each))

    return {
        "frozen head": frozen.predict(found[MEAN]).predictive,
        "mean": heads[MEAN].predict(found[MEAN]).predictive,
        f"{DRAWS} draws, the head of the mean": averaged(dict.fromkeys(draws, heads[MEAN])),
        f"{DRAWS} draws, a head for each": averaged(heads),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--train_items", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    values = (options.task, options.train_items, 0, "BayesianLora", BEFORE["targets"], "frozen", options.rate, 2.0)
    key = dict(zip(KEY, (*values, options.seed), strict=True))
    parts = parts_of(options.task, options.train_items, 0)
    with tempfile.TemporaryDirectory() as temporary:
        write_items(Path(temporary), parts)
        config = config_of(Path(temporary), options.features, key, parts["train"][0].group is not None)
        run = train(config, Path(temporary) / "run", evaluate_dev=False)
        read = {name: features(run, items) for name, items in parts.items()}
    labels = {name: labels_of(items) for name, items in parts.items()}
    with RESULTS.open("a") as file:
        for split in ("dev", "test"):
            for row, predictive in rows_of(read, labels["train"], split).items():
                record = key | {"row": row, "split": split} | scored(predictive, labels[split])
                file.write(json.dumps(record) + "\n")
                print(split, row, round(record["nll"], 4), flush=True)


if __name__ == "__main__":
    main()

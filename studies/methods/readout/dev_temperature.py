"""Is a dev set needed? The temperature of the training items against that of 200 held-out ones: dev_temperature.jsonl.

    OMP_NUM_THREADS=1 python -m studies.methods.readout.dev_temperature --features FOLDER

The same heads as in measure.py. 200 of the test items give the other temperature, of least NLL on a grid; both are
scored on the rest. SST-2 has 274 test items, too few to split.
"""

import argparse
import json
import math
import random
import warnings
from pathlib import Path

import torch
from torch import Tensor

from bayeslora import BayesianHead
from bayeslora.readouts.blocks import OptionFeatures
from bayeslora.readouts.head import Head, fit_head
from bayeslora.runs.config import ModelConfig
from bayeslora.runs.heads import choice_indicators, fixed_choices, open_reader
from bayeslora.tasks import Item
from studies.methods.readout.measure import FIXED, SIZES, drawn, labels_of, splits

RESULTS = Path(__file__).with_name("dev_temperature.jsonl")
GRID = [math.exp(step / 12) for step in range(-18, 19)]
DEV = 200


def nll(head: Head, features: OptionFeatures, labels: Tensor, temperature: float) -> Tensor:
    """Of each item."""
    found = head.predict(features, temperature=temperature).predictive.log_probabilities
    return -found.gather(-1, labels.unsqueeze(-1))[:, 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", required=True)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    head = BayesianHead(ModelConfig(name="offline:smollm2", dtype="bfloat16"), features=options.features)
    reader = open_reader(head.config, Path())
    known = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    done = {(one["task"], one["train_items"]) for one in map(json.loads, known)}
    for task in ("arc_easy", "openbookqa", "siqa", "piqa", "boolq"):
        pool, test = splits(task)
        pool = drawn(pool, max(SIZES[task][0]), 0)
        places = list(range(len(test)))
        random.Random(0).shuffle(places)
        for size in SIZES[task][0]:
            if size > 1000 or (task, size) in done:
                continue
            train = drawn(pool, size, 0)
            classes = fixed_choices(train) if task in FIXED else None

            def read(items: list[Item], classes: list[str] | None = classes) -> OptionFeatures:
                numbers = {} if classes is None else {"choice": choice_indicators(items, classes)}
                return reader(items).with_numbers(**numbers)

            fitted, features, labels = fit_head(read(train), labels_of(train)), read(test), labels_of(test)
            dev, rest = (torch.tensor(part) for part in (places[:DEV], places[DEV:]))

            other = min(GRID, key=lambda at: float(nll(fitted, features[dev], labels[dev], at).mean()))
            own = fitted.noise.temperature
            of_own, of_other = (nll(fitted, features[rest], labels[rest], at) for at in (own, other))
            less = of_own - of_other
            record = {
                "task": task,
                "train_items": size,
                "items": len(rest),
                "temperature": round(own, 4),
                "dev_temperature": round(other, 4),
                "nll": round(float(of_own.mean()), 5),
                "dev_nll": round(float(of_other.mean()), 5),
                "z": round(float(less.mean() / less.std().clamp_min(1e-12) * len(rest) ** 0.5), 2),
            }
            with RESULTS.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(record, flush=True)


if __name__ == "__main__":
    main()

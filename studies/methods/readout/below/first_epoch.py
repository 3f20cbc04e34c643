"""The cross-fitted loss of the frozen head in the order of the first epoch, by ten steps of eight items, and what the
trainer printed of the runs in results.jsonl: first_epoch.json beside it.

    OMP_NUM_THREADS=1 python -m studies.methods.readout.below.first_epoch FOLDER [LOG]

FOLDER has the features of ../measure.py; LOG is what `measure.py` printed on stderr.
"""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import torch

from bayeslora.methods.bayesian_head import BayesianHead
from bayeslora.readouts.head import fit_head
from bayeslora.readouts.linear import cross_fitted
from bayeslora.readouts.over_adapters import folds_of
from bayeslora.runs.config import ModelConfig, RunConfig, TaskConfig, TrainConfig
from bayeslora.runs.heads import open_reader
from studies.methods.readout.measure import drawn, labels_of, splits

RESULTS = Path(__file__).with_name("first_epoch.json")
ADAPTED = ("layer 15, mean", "layer 15, last", "layer 20, mean", "layer 20, last")


def frozen(folder: str) -> list[float]:
    """As the heads of the first epoch read the items: adapted blocks are those of the frozen model before a step."""
    items = drawn(drawn(splits("arc_easy")[0], 1780, 0), 500, 0)
    model = ModelConfig(name="offline:smollm2", dtype="bfloat16")
    train = TrainConfig(cache_trunk_folder=folder)
    config = RunConfig(model=model, task=TaskConfig(scoring="options"), method=BayesianHead(), train=train)
    features, labels = open_reader(config, Path())(items), labels_of(items)
    adapted = {f"adapted {name}": features.hidden[name] for name in ADAPTED}
    features, folds = replace(features, hidden={**features.hidden, **adapted}), folds_of(items, 5, 0)
    heads = cross_fitted(fit_head(features, labels), features, labels, folds)
    losses = torch.nn.functional.cross_entropy(heads.logits(features, folds), labels, reduction="none")
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    return [round(float(losses[order[first : first + 80]].mean()), 3) for first in range(0, 480, 80)]


def printed(log: Path) -> list[float]:
    """NLL by ten steps, both epochs."""
    return [float(value) for value in re.findall(r"^\s+\d+0 +[\d.]+ +([\d.]+) ", log.read_text(), re.MULTILINE)]


def main() -> None:
    torch.set_num_threads(1)
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    found["frozen head"] = frozen(sys.argv[1])
    for log in map(Path, sys.argv[2:]):
        found[log.stem] = printed(log)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

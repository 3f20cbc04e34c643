"""Ten draws of every item against as many as each needs, with one trained run.

OMP_NUM_THREADS=1 python -m studies.methods.adaptive_samples.measure RUN    (a run of ../gauss_newton/train.sh)

Writes results.json. Both predict without a trunk cache, so that a later round pays for the frozen layers again.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayeslora.metrics import summary
from bayeslora.prediction.predictive import Predictive
from bayeslora.prediction.sequential import Adaptive
from bayeslora.runs import Prediction, Run, load_run, task_items
from studies.methods.adaptive_samples.generated import settled

RESULTS = Path(__file__).with_name("results.json")
TEST, ERRORS, FEWEST = 1000, (0.005, 0.01, 0.02, 0.05), (1, 2)


def scores(predictive: Predictive, labels: Tensor) -> dict[str, float]:
    found = summary(predictive.probabilities, labels)
    return {name: round(float(found[name]), 4) for name in ("accuracy", "nll", "ece")}


def replayed(run: Run, full: Prediction, labels: Tensor, adaptive: Adaptive) -> dict[str, Any]:
    """What the test would have done with the same draws."""
    settling = run.settling(adaptive)
    assert settling is not None
    return described(settled(full.predictive.samples, settling), full, labels)


def described(found: Any, full: Prediction, labels: Tensor) -> dict[str, Any]:
    equal = found.probabilities.argmax(-1) == full.predictive.probabilities.argmax(-1)
    counts = found.counts
    return scores(found, labels) | {
        "equal_decisions": round(float(equal.double().mean()), 4),
        "mean_draws": round(float(counts.double().mean()), 3),
        "items_by_draws": {int(count): int((counts == count).sum()) for count in counts.unique()},
    }


def main() -> None:
    run = load_run(sys.argv[1]).without_cache()
    items = task_items(run.config.task).test[:TEST]
    labels = torch.tensor([item.label for item in items])
    settling = run.settling()
    assert settling is not None
    full = run.predict(items, progress=False)
    results: dict[str, Any] = {
        "items": len(items),
        "prior": {"degrees": round(settling.rival.degrees, 3), "variance": round(settling.rival.variance, 5)},
        "limit": round(settling.limit, 4),
        "all": scores(full.predictive, labels) | {"seconds": round(full.seconds, 1)},
        "replayed": {
            f"error {error}, fewest {fewest}": replayed(run, full, labels, Adaptive(error=error, fewest=fewest))
            for fewest in FEWEST
            for error in ERRORS
        },
        "first": {number: scores(Predictive(full.predictive.samples[:number]), labels) for number in (1, 2, 4)},
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    found = run.predict(items, "auto", progress=False)
    results["auto"] = described(found.predictive, full, labels) | {"seconds": round(found.seconds, 1)}
    results["seconds_ratio"] = round(found.seconds / full.seconds, 3)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

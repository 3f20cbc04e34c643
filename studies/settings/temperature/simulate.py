"""How strongly to shrink log T: the NLL that a fitted temperature costs or gains on new items, by prior and dev size.

python studies/settings/temperature/simulate.py --output studies/settings/temperature/prior.json

A world has items with logits a * N(0, I), labels drawn from their softmax, and a model whose logits are T* times these:
the right temperature is T*. Worlds: 2 or 4 choices, a of 1.5, 4 and 12 (hard to easy), T* of 0.7, 1, 1.5, 2.5 and 4.
`fit_temperature` sees `dev` items, and the NLL is measured on 20,000 others. The excess is over the NLL with T*, in
nats, mean over worlds and repetitions; `worst` is the largest mean of a world. Also how many fits end at a bound.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
from pathlib import Path

import torch
from torch import Tensor

from bayeslora.prediction.predictive import Predictive
from bayeslora.prediction.temperature import bound_of, fit_temperature

CHOICES = (2, 4)
SHARPNESS = (1.5, 4.0, 12.0)
TEMPERATURES = (0.7, 1.0, 1.5, 2.5, 4.0)
DEV = (10, 20, 40, 80, 200, 1000)
PRIORS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, math.inf)
TEST = 20_000


def draw(
    items: int, choices: int, sharpness: float, temperature: float, source: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The model's logits [items, choices] and the labels [items]."""
    logits = sharpness * torch.randn(items, choices, generator=source)
    return temperature * logits, torch.multinomial(logits.softmax(-1), 1, generator=source).squeeze(-1)


def nll(logits: Tensor, labels: Tensor, temperature: float) -> float:
    """Mean, in nats."""
    return torch.nn.functional.cross_entropy(logits / temperature, labels).item()


def world(
    choices: int, sharpness: float, temperature: float, dev: int, repetitions: int
) -> dict[float, tuple[float, float]]:
    """For each prior the mean excess NLL, nats, and how many fits ended at a bound; `nan` is no scaling."""
    source = torch.Generator().manual_seed(0)
    test = draw(TEST, choices, sharpness, temperature, source)
    right = nll(*test, temperature)
    found = {prior: [0.0, 0] for prior in PRIORS}
    for _ in range(repetitions):
        logits, labels = draw(dev, choices, sharpness, temperature, source)
        predictive = Predictive(logits.log_softmax(-1).unsqueeze(0))
        for prior in PRIORS:
            fitted = fit_temperature(predictive, labels, prior)
            found[prior][0] += (nll(*test, fitted.value) - right) / repetitions
            found[prior][1] += bound_of(fitted.record) is not None
    return {prior: (excess, bounds) for prior, (excess, bounds) in found.items()} | {
        0.0: (nll(*test, 1.0) - right, 0)  # a prior without width is no scaling
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--repetitions", type=int, default=10)
    options = parser.parse_args()
    logging.getLogger("bayeslora").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    table = []
    for dev in DEV:
        worlds = [
            world(*parts, dev, options.repetitions) for parts in itertools.product(CHOICES, SHARPNESS, TEMPERATURES)
        ]
        for prior in (0.0, *PRIORS):
            excess = [found[prior][0] for found in worlds]
            row = {
                "dev": dev,
                "prior_std": prior if math.isfinite(prior) else None,
                "excess_nll": round(sum(excess) / len(excess), 5),
                "worst": round(max(excess), 5),
                "at_a_bound": sum(found[prior][1] for found in worlds),
            }
            table.append(row)
            print(row, flush=True)
    command = (
        f"python studies/settings/temperature/simulate.py --output {options.output} --repetitions {options.repetitions}"
    )
    content = {"command": command, "fits": len(worlds) * options.repetitions, "rows": table}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

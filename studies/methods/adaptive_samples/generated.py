"""The share of answers that change, and the draws, on generated draws: several kinds, sizes of dev and stated errors.

OMP_NUM_THREADS=1 python studies/methods/adaptive_samples/generated.py

Writes generated.jsonl.
"""

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from bayeslora.prediction.predictive import Predictive
from bayeslora.prediction.sequential import Adaptive, Settling, draw_until_settled
from bayeslora.prediction.uneven import UnevenPredictive

RESULTS = Path(__file__).with_name("generated.jsonl")
DRAWS, TEST, DEV_SETS = 10, 4000, 16
# Choices, standard deviation of mean logits, median one of draws, and of its logarithm over items.
WORLDS = {
    "two choices, much noise": (2, 0.5, 1.0, 0.5),
    "two choices, little": (2, 1.5, 0.4, 0.5),
    "four choices, almost none": (4, 3.0, 0.1, 0.0),
    "four choices, little": (4, 1.5, 0.4, 0.0),
    "four choices, little, very different items": (4, 1.5, 0.4, 1.0),
}
DEV, ERRORS = (20, 100, 200), (0.01, 0.05)


def world(items: int, choices: int, spread: float, noise: float, tail: float, seed: int) -> Tensor:
    """Log-probabilities [draws, items, choices]: normal logits whose noise differs from item to item."""
    generator = torch.Generator().manual_seed(seed)
    means = spread * torch.randn(items, choices, generator=generator)
    scales = noise * torch.exp(tail * torch.randn(items, 1, generator=generator))
    return torch.log_softmax(means + scales * torch.randn(DRAWS, items, choices, generator=generator), -1)


def settled(samples: Tensor, settling: Settling) -> UnevenPredictive:
    """What is left of draws [draws, items, choices] where each item ends once it is settled."""

    def draw(numbers: Sequence[int], first: int, count: int) -> Predictive:
        return Predictive(samples[first : first + count][:, numbers])

    return draw_until_settled(draw, settling, samples.shape[1])


def one(parameters: tuple[int, float, float, float], dev: int, error: float, seed: int) -> tuple[float, float]:
    """Share of the answers that change, and the mean number of draws."""
    settling = Settling.fit(Adaptive(error=error), world(dev, *parameters, seed + 1))
    samples = world(TEST, *parameters, 0)
    found = settled(samples, settling)
    changed = found.probabilities.argmax(-1) != Predictive(samples).probabilities.argmax(-1)
    return float(changed.double().mean()), float(found.counts.double().mean())


def main() -> None:
    records = []
    for (name, parameters), dev, error in product(WORLDS.items(), DEV, ERRORS):
        shares, draws = zip(*(one(parameters, dev, error, seed) for seed in range(DEV_SETS)), strict=True)
        found = {"changed": sum(shares) / DEV_SETS, "most_changed": max(shares), "draws": sum(draws) / DEV_SETS}
        cell = {"world": name, "dev_items": dev, "error": error, "dev_sets": DEV_SETS}
        records.append(cell | {key: round(value, 4) for key, value in found.items()})
    RESULTS.write_text("".join(json.dumps(record) + "\n" for record in records))


if __name__ == "__main__":
    main()

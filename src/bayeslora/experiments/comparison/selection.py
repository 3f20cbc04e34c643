"""Which learning rate of a grid is the best on the dev split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from bayeslora.experiments.comparison.records import Cell, Items
from bayeslora.experiments.comparison.results import Results
from bayeslora.metrics import accuracy, nll


def best_rate(
    results: Results, task: str, method: str, seed: int, rates: Sequence[float], select_by: Literal["nll", "accuracy"]
) -> float:
    """The rate whose selection cell has the best dev score (accuracy: ties go to the lower NLL).

    Raises:
        RuntimeError: None of them has one; where training diverged there is no score.
    """
    items = results.items(task, "dev")

    def badness(rate: float) -> tuple[float, ...]:
        return _badness(results.find(task, method, seed, rate, "selection"), items, select_by)

    best = min(rates, key=badness)
    if badness(best) == (math.inf,):
        raise RuntimeError(f"no selection cell of {method!r} on {task} could be computed.")
    return best


def next_rate(best: float, tried: Sequence[float]) -> float | None:
    """The next half decade (1 or 3 times a power of ten) beyond `best`, at least twice as far; None if it is no edge.

    >>> next_rate(3e-3, [3e-4, 1e-3, 3e-3]), next_rate(3e-4, [3e-4, 1e-3, 3e-3]), next_rate(1e-3, [3e-4, 1e-3, 3e-3])
    (0.01, 0.0001, None)
    """
    if min(tried) < best < max(tried):
        return None
    ladder = [float(f"{digit}e{power}") for power in range(-12, 2) for digit in (1, 3)]
    if best == max(tried):
        return next((rate for rate in ladder if 2 * best <= rate <= 10), None)
    return next((rate for rate in reversed(ladder) if rate <= best / 2), None)


def diverged(cell: Cell) -> bool:
    """Whether training ended in a loss that is not finite, so that nothing was predicted."""
    return "dev" not in cell.predictions


def _badness(cell: Cell | None, dev: Items, select_by: Literal["nll", "accuracy"]) -> tuple[float, ...]:
    if cell is None or diverged(cell):
        return (math.inf,)
    probabilities, labels = cell.predictions["dev"].normalised(), dev.label_array()
    loss = nll(probabilities, labels)
    return (loss,) if select_by == "nll" else (-accuracy(probabilities, labels), loss)

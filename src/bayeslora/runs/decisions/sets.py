"""Conformal sets of options: how improbable the right option of a state usually is, of each question."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bayeslora.metrics.inputs import share_of
from bayeslora.tasks.decisions import Answer


@dataclass(frozen=True)
class SetSizes:
    """How large the sets of labelled answers are; the smaller, the more they say at the same coverage.

    Args:
        mean: Options a set.
        single: Share of sets of one option.
    """

    mean: float
    single: float

    @classmethod
    def of(cls, sizes: Sequence[int]) -> SetSizes:
        """From the number of options in each of one or more sets."""
        return cls(sum(sizes) / len(sizes), sum(size == 1 for size in sizes) / len(sizes))


def set_threshold(right: Sequence[float], states: Sequence[str], coverage: float) -> float | None:
    """The largest 1 - p of an option in a set; None where the states are too few, and each set is all options.

    Split-conformal (Sadinle et al., arXiv:1609.00451) with the state as the unit: of a state's labels the least
    probable counts, and the ceil((states + 1) coverage)-th smallest of these scores is the threshold.

    Args:
        right: Probability of each label's option.
        states: What labels of one state share.
        coverage: Share of new states whose labels shall be in their sets, in (0, 1).
    """
    worst: dict[str, float] = {}
    for p, state in zip(right, states, strict=True):
        worst[state] = max(1 - p, worst.get(state, 0.0))
    rank = share_of(len(worst) + 1, coverage)
    return sorted(worst.values())[rank - 1] if rank <= len(worst) else None


def options_in_set(answer: Answer, threshold: float | None) -> tuple[int, ...]:
    """Indices of the options whose score is no larger; the most probable one is always there."""
    largest = math.inf if threshold is None else threshold
    return tuple(index for index, p in enumerate(answer.probabilities) if 1 - p <= largest or index == answer.best)

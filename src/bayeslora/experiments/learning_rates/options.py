"""What a sweep is told, its methods by their names; `bayeslora sweep --help` describes it without PEFT and torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from bayeslora.experiments.comparison.options import CompareOptions, ProtocolConfig
from bayeslora.options.ranges import Count, Range, Rate

RATIO = 10**0.25
"""Of neighbouring rates, as in arXiv 2602.04998."""


@dataclass
class SweepOptions(CompareOptions):
    """A comparison of which only the selection of learning rates is run: each row, each rate, the first seed, on dev.

    It has all options of `bayeslora compare`; those of the test split have no effect.

    Args:
        lowest: Lowest rate of the grid.
        highest: Highest rate of the grid, at least the lowest.
        ratio: Of neighbouring rates, above 1.
        learning_rates: The grid itself, in place of these three.
        hint: Whether to compute the largest eigenvalue of the Hessian for each row.
        hint_examples: Training items that the Hessian is computed on.
    """

    learning_rates: list[Rate] = field(default_factory=list)
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig.plain)
    lowest: Rate = 1e-4
    highest: Rate = 1e-1
    ratio: Annotated[float, Range(1, 1e6, above=True)] = RATIO
    hint: bool = True
    hint_examples: Count = 64

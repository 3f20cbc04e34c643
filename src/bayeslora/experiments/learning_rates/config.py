"""What a sweep is made of; the YAML file and the command line are generated from this class."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated

from bayeslora.experiments.comparison.config import CompareConfig, ProtocolConfig
from bayeslora.options.ranges import Count, Range, Rate, check_options

__all__ = ["RATIO", "SweepConfig", "log_grid"]

RATIO = 10**0.25
"""Of neighbouring rates, as in arXiv 2602.04998."""


@dataclass
class SweepConfig(CompareConfig):
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

    def __post_init__(self) -> None:
        """Fill in the grid, and check what would fail only hours later.

        Raises:
            ValueError: As a comparison's; or the grid is empty.
        """
        check_options(self)
        self.learning_rates = self.learning_rates or log_grid(self.lowest, self.highest, self.ratio)
        super().__post_init__()


def log_grid(lowest: float, highest: float, ratio: float = RATIO) -> list[float]:
    """Rates from `lowest` on, each `ratio` times the one before, up to `highest`; four significant digits.

    Raises:
        ValueError: The bounds are not positive and in order, or the ratio is not above 1.
    """
    if not 0 < lowest <= highest or not ratio > 1:
        raise ValueError(f"expected 0 < lowest <= highest and ratio > 1, got {lowest}, {highest} and {ratio}.")
    steps = math.floor(math.log(highest / lowest, ratio) + 1e-6)
    return [float(f"{lowest * ratio**step:.4g}") for step in range(steps + 1)]

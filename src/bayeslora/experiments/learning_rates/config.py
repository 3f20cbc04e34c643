"""What a sweep is made of; the YAML file and the command line are generated from this class."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from bayeslora.experiments.comparison.config import CompareConfig, RowConfig, default_rows
from bayeslora.experiments.learning_rates.options import RATIO, SweepOptions
from bayeslora.options.ranges import check_options


@dataclass
class SweepConfig(SweepOptions, CompareConfig):
    """A comparison of which only the selection is run; the fields are those of `SweepOptions`."""

    rows: dict[str, RowConfig] = field(default_factory=default_rows)

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

    Ratios and bounds are written with few digits: a last rate that passes `highest` by less than a hundredth of a step
    is `highest`.

    Raises:
        ValueError: The bounds are not positive and in order, or the ratio is not above 1.
    """
    if not 0 < lowest <= highest or not ratio > 1:
        raise ValueError(f"expected 0 < lowest <= highest and ratio > 1, got {lowest}, {highest} and {ratio}.")
    steps = math.floor(math.log(highest / lowest, ratio) + 0.01)
    return [float(f"{min(lowest * ratio**step, highest):.4g}") for step in range(steps + 1)]


def wider_bound(config: SweepConfig, edge: str) -> float:
    """The bound of a grid that goes two steps beyond an edge, with as few digits as keep the rates that are there.

    Args:
        config: The sweep, whose grid goes from `lowest` to `highest`.
        edge: "lowest" or "highest".
    """
    rates = log_grid(config.lowest, config.highest, config.ratio)
    beyond = config.lowest / config.ratio**2 if edge == "lowest" else rates[-1] * config.ratio**2
    for digits in range(1, 12):
        bound = float(f"{beyond:.{digits}g}")
        bounds = (bound, config.highest) if edge == "lowest" else (config.lowest, bound)
        grid = log_grid(*bounds, config.ratio)
        if set(rates) < set(grid) and len(grid) == len(rates) + 2:
            return bound
    return beyond

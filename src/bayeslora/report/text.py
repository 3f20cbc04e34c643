"""Numbers and Markdown tables, as every study writes them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy

MISSING = "–"
"""What stands where there is no number."""


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1); NaN for the latter of one value, for both of none."""
    if not len(values):
        return math.nan, math.nan
    return float(numpy.mean(values)), float(numpy.std(values, ddof=1)) if len(values) > 1 else math.nan


def plus_minus(mean: float | None, std: float | None = None, digits: int = 3) -> str:
    """A mean and, where there is one, its deviation: "0.512 ± 0.013".

    >>> plus_minus(*mean_and_std([0.5, 0.7]), digits=2), plus_minus(0.5), plus_minus(None)
    ('0.60 ± 0.14', '0.500', '–')
    """
    if mean is None or math.isnan(mean):
        return MISSING
    deviation = "" if std is None or math.isnan(std) else f" ± {std:.{digits}f}"
    return f"{mean:.{digits}f}{deviation}"


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = False) -> str:
    """A table without a line end behind it; with `numbers` all columns but the first are aligned on the right.

    >>> print(markdown_table(["row", "ECE"], [["lora", "0.100"]]))
    | row | ECE |
    |---|---|
    | lora | 0.100 |
    """
    rule = "|---" + ("|---:" if numbers else "|---") * (len(heads) - 1) + "|"
    lines = ["|" + "".join(_cell(cell) for cell in line) for line in (heads, *rows)]
    return "\n".join([lines[0], rule, *lines[1:]])


def _cell(text: str) -> str:
    return f" {text.replace('|', '/')} |" if text else " |"

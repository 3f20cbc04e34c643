"""Markdown tables of numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy

__all__ = ["markdown_table", "mean_and_deviation", "three_decimals"]


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column has names and whose others have numbers."""
    lines = [heads, ["---", *("---:" for _ in heads[1:])], *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)


def three_decimals(value: float) -> str:
    """Three decimals."""
    return f"{value:.3f}"


def mean_and_deviation(values: Sequence[float]) -> str:
    """Mean and, of several values, their standard deviation (n - 1)."""
    mean = three_decimals(float(numpy.mean(values)))
    return mean if len(values) < 2 else f"{mean} ± {three_decimals(float(numpy.std(values, ddof=1)))}"

"""Means over seeds, and which rows of a table cannot be told apart from the best.

The rows are compared by a paired bootstrap: items are drawn with replacement, the same ones for all rows, and seeds are
drawn with replacement too, the same ones for all rows that have the same seeds. A resample is an array of counts, how
often each item was drawn, and every metric (`bayeslora.metrics`) is computed from counts for all resamples at once;
counts of one are the sample itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy

from bayeslora.metrics.base import Heading
from bayeslora.report.text import mean_and_std

Mark = Literal["best", "tied", ""]

_INTERVAL = (0.025, 0.975)
_SAME = 1e-9
"""Means that differ by less are equal up to rounding."""


@dataclass(frozen=True)
class Detection(Heading):
    """How well an uncertainty tells out-of-distribution items from those of the test split."""

    name: str
    title: str
    higher_is_better: bool = True


DETECTION = (
    Detection("entropy", "detection AUROC, entropy"),
    Detection("mutual_information", "detection AUROC, mutual information"),
)


@dataclass(frozen=True)
class Score:
    """A metric of a row.

    Attributes:
        mean: Mean over seeds; NaN where the metric is not defined.
        std: Sample standard deviation over seeds; NaN for one seed.
        mark: "best", "tied" with the best, or "".
    """

    mean: float
    std: float
    mark: Mark


class Resampling:
    """Draws of items and seeds that all rows of a comparison share.

    Args:
        resamples: Number of resamples R. Every array of this class and of what is computed from it has 1 + R entries:
            first the sample itself, then the resamples.
        seed: Seed of the draws; the same seed gives the same marks.
    """

    def __init__(self, resamples: int = 1000, seed: int = 0):
        self.resamples = resamples
        self._generator = numpy.random.default_rng(seed)
        self._seed_shares: dict[tuple[int, ...], numpy.ndarray] = {}

    def item_counts(self, items: int) -> numpy.ndarray:
        """How often each item is drawn [1 + resamples, items]; each call draws anew."""
        return self._counts(items)

    def seed_shares(self, seeds: Sequence[int]) -> numpy.ndarray:
        """Share of each seed in the mean over seeds [seeds, 1 + resamples]; equal seeds get equal draws."""
        key = tuple(seeds)
        if key not in self._seed_shares:
            self._seed_shares[key] = self._counts(len(key)).T / len(key)
        return self._seed_shares[key]

    def _counts(self, number: int) -> numpy.ndarray:
        drawn = self._generator.multinomial(number, numpy.full(number, 1 / number), size=self.resamples)
        return numpy.concatenate([numpy.ones((1, number)), drawn])


def compare(
    values: Mapping[str, Mapping[int, numpy.ndarray]], resampling: Resampling, *, higher_is_better: bool
) -> dict[str, Score]:
    """The score of each row, with the best one and those tied with it marked.

    The best row has the best mean over seeds (all rows of that mean, if several have it). A row is tied with it if the
    95 % interval of the difference of their means contains 0. The interval is the basic bootstrap interval
    [2 d - q(0.975), 2 d - q(0.025)], d the difference and q the quantiles of its resamples (Davison and Hinkley 1997,
    Bootstrap Methods and their Application, section 2.4): resampling makes a calibration error larger, the more so the
    smaller it is, and this interval takes that bias away where the percentile interval would double it.

    The resamples vary items and seeds. With few seeds this understates the seeds' share (drawing from n of them gives
    (n - 1) / n of their variance), and with one seed it leaves it out. Nothing is corrected for the number of rows.

    Args:
        values: For each row and each of its seeds the metric of each resample [1 + resamples], the sample itself first.
            Rows whose metric is NaN are not marked.
        resampling: What the metrics were resampled with.
        higher_is_better: The direction of the metric.
    """
    means = {
        row: (resampling.seed_shares(list(by_seed)) * numpy.stack(list(by_seed.values()))).sum(0)
        for row, by_seed in values.items()
    }
    defined = {row: mean for row, mean in means.items() if math.isfinite(mean[0])}
    marks: dict[str, Mark] = {}
    if defined:
        choose = max if higher_is_better else min
        best = choose(defined.values(), key=lambda mean: float(mean[0]))
        marks = {row: _mark(mean - best) for row, mean in defined.items()}
    return {
        row: Score(float(means[row][0]), mean_and_std([value[0] for value in by_seed.values()])[1], marks.get(row, ""))
        for row, by_seed in values.items()
    }


def _mark(difference: numpy.ndarray) -> Mark:
    """The mark of a row by its difference to the best one [1 + resamples]."""
    if abs(difference[0]) < _SAME:
        return "best"
    low, high = numpy.nanquantile(difference[1:], _INTERVAL)
    return "tied" if low <= 2 * difference[0] <= high else ""

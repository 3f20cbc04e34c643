"""What a metric is: one definition, from how often each item counts, for a sample and for its resamples alike."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy

from bayeslora.metrics.inputs import Array
from bayeslora.metrics.sample import Sample


class Heading:
    """What a column of a table says.

    Attributes:
        name: Its key in records.
        title: Its head, with its unit.
        higher_is_better: Its direction.
    """

    name: str
    title: str
    higher_is_better: bool

    @property
    def head(self) -> str:
        """The title with an arrow in the direction of better."""
        return f"{self.title}\N{NO-BREAK SPACE}{'↑' if self.higher_is_better else '↓'}"


class Metric(Heading, ABC):
    """A score of labelled predictions; one file or a part of one in this folder. Reports and `summary` have them all.

    An instance is a function of probabilities `[items, choices]` and labels `[items]`.
    """

    higher_is_better = False
    place = 100
    """Columns of tables stand in the order of these numbers."""

    @abstractmethod
    def of(self, sample: Sample) -> numpy.ndarray:
        """The metric of each resample `[resamples]`; NaN where it is not defined."""

    def __call__(self, probabilities: Array, labels: Array) -> float:
        """The metric of the items as they are."""
        return float(self.of(Sample(probabilities, labels))[0])

"""Labelled predictions, and how often each of some resamples has each of them."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy
import torch

from bayeslora.metrics.direction import CONFIDENCE, Measure
from bayeslora.metrics.inputs import Array, checked, checked_values, top_choice


class Levels(NamedTuple):
    """Items of equal score taken together, in ascending order."""

    scores: numpy.ndarray
    """`[levels]`."""
    size: numpy.ndarray
    """Items `[resamples, levels]`."""
    positive: numpy.ndarray
    """Positive ones among them `[resamples, levels]`."""

    @classmethod
    def of(cls, scores: numpy.ndarray, positive: numpy.ndarray, counts: numpy.ndarray | None = None) -> Levels:
        """Those of scores and whether they are positive, `[items]` both; counts `[resamples, items]`, default: each
        item once."""
        counts = numpy.ones((1, len(scores))) if counts is None else counts
        order = numpy.argsort(scores, kind="stable")
        levels, starts = numpy.unique(scores[order], return_index=True)
        ordered = counts[:, order]
        size = numpy.add.reduceat(ordered, starts, axis=1)
        return cls(levels, size, numpy.add.reduceat(ordered * positive[order], starts, axis=1))

    def auroc(self) -> numpy.ndarray:
        """Probability that a positive item scores higher than a negative one, equal ones half; NaN without a pair."""
        negative = self.size - self.positive
        below = negative.cumsum(1) - negative / 2
        pairs = self.positive.sum(1) * negative.sum(1)
        undefined = numpy.full(len(pairs), numpy.nan)
        return numpy.divide((self.positive * below).sum(1), pairs, out=undefined, where=pairs > 0)


class Sample:
    """Labelled predictions and resamples of them; every resample has the same number of items.

    Args:
        probabilities: `[items, choices]`.
        labels: `[items]`.
        counts: How often each resample has each item `[resamples, items]`; default: one resample, the items themselves.
        values: What items are ranked by `[items]`; default: the confidence of the top choice.
        measure: What `values` are.

    Attributes:
        number: Items of a resample.
        rows: The probabilities, float64.
        of_label: Probability of each label `[items]`, float64.
        correct: Whether each top choice is right `[items]`.

    Raises:
        ValueError: As all metrics: what is given is no distribution or no label, or does not fit together.
    """

    def __init__(
        self,
        probabilities: Array,
        labels: Array,
        counts: numpy.ndarray | None = None,
        *,
        values: Array | None = None,
        measure: Measure = CONFIDENCE,
    ):
        self.rows, targets = checked(probabilities, labels)
        self._confidence, self.correct = top_choice(self.rows, targets)
        self.of_label = self.rows.gather(1, targets[:, None]).squeeze(1)
        self._counts = numpy.ones((1, len(targets))) if counts is None else counts
        self.number = int(self._counts[0].sum())
        self._doubt = None if values is None and measure == CONFIDENCE else self._ranked_by(values, measure)

    def mean(self, values: torch.Tensor) -> numpy.ndarray:
        """Mean over the items of numbers `[items]`, for each resample."""
        found: numpy.ndarray = self._counts @ values.double().numpy() / self.number
        return found

    @cached_property
    def confidence(self) -> Levels:
        """By the confidence of the top choice; the positive items are those whose top choice is right."""
        return Levels.of(below_one(self._confidence), self.correct.numpy(), self._counts)

    @cached_property
    def ranking(self) -> Levels:
        """As `confidence`, by what items are ranked by, the more doubtful first."""
        if self._doubt is None:
            return self.confidence
        return Levels.of(-self._doubt.numpy(), self.correct.numpy(), self._counts)

    def _ranked_by(self, values: Array | None, measure: Measure) -> torch.Tensor:
        if values is None:
            raise ValueError(f"Expected values of the {measure.name} of each item, but got none. Pass values=.")
        found = checked_values("values", values)
        if len(found) != len(self.correct):
            raise ValueError(f"Expected a value for each of the {len(self.correct)} items, but got {len(found)}.")
        return measure.doubt(found)


def below_one(confidence: torch.Tensor) -> numpy.ndarray:
    """Confidences in float64, the certain ones the largest number below one: bins are open above."""
    found: numpy.ndarray = confidence.double().clamp_max(1 - torch.finfo(torch.float64).eps / 2).numpy()
    return found

"""The scores of a task's rows on a split, with the rows that cannot be told apart from the best."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import numpy

from bayeslora.experiments.comparison.report.rows import Row, TaskRows
from bayeslora.metrics import Sample, all_metrics, detection_auroc, entropy
from bayeslora.metrics.base import Heading
from bayeslora.report.statistics import DETECTION, Resampling, Score, compare

Scores: TypeAlias = dict[str, dict[str, Score]]
"""For each metric's name the score of each row."""

_BySeed: TypeAlias = dict[int, numpy.ndarray]


class TaskScores(NamedTuple):
    """Scores of one task.

    Attributes:
        test: Scores on the test split.
        outside: For each out-of-distribution split the detection of its items, and scores where it has labels.
        readings: For each other link the scores on the test split of the rows that were read by it.
    """

    test: Scores
    outside: dict[str, Scores]
    readings: dict[str, Scores]


def task_scores(task: TaskRows, resampling: Resampling) -> TaskScores:
    """All scores of a task; items are drawn once for each split."""
    counts = {split: resampling.item_counts(len(items)) for split, items in task.items.items() if split != "dev"}
    outside = {}
    for split in task.outside_splits:
        labelled = {} if task.items[split].labels is None else _labelled(task, split, counts, resampling)
        outside[split] = labelled | _detection(task, split, counts, resampling)
    if "test" not in counts:
        return TaskScores({}, outside, {})
    readings = {link: _labelled(task.read_by(link), "test", counts, resampling) for link in task.readings}
    return TaskScores(_labelled(task, "test", counts, resampling), outside, readings)


def _labelled(task: TaskRows, split: str, counts: Mapping[str, numpy.ndarray], resampling: Resampling) -> Scores:
    labels = task.items[split].label_array()
    samples = {
        row.title: {seed: Sample(found, labels, counts[split]) for seed, found in row.probabilities(split).items()}
        for row in task.with_split(split)
    }
    return {
        metric.name: _compared(
            metric,
            {row: {seed: metric.of(sample) for seed, sample in by_seed.items()} for row, by_seed in samples.items()},
            resampling,
        )
        for metric in all_metrics()
    }


def _detection(task: TaskRows, split: str, counts: Mapping[str, numpy.ndarray], resampling: Resampling) -> Scores:
    if "test" not in counts:
        return {}
    readings: dict[str, Callable[[Row, str], _BySeed]] = {"entropy": _entropies, "mutual_information": _information}
    rows = [row for row in task.with_split(split) if row in task.with_split("test")]
    scores: Scores = {}
    for metric in DETECTION:
        read = readings[metric.name]
        values = {}
        for row in rows:
            outside = read(row, split)
            values[row.title] = {
                seed: detection_auroc(inside, outside[seed], counts["test"], counts[split])
                for seed, inside in read(row, "test").items()
            }
        scores[metric.name] = _compared(metric, {row: found for row, found in values.items() if found}, resampling)
    return scores


def _entropies(row: Row, split: str) -> _BySeed:
    return {seed: entropy(probabilities).numpy() for seed, probabilities in row.probabilities(split).items()}


def _information(row: Row, split: str) -> _BySeed:
    """Nothing for a row without draws, whose mutual information is zero by definition."""
    found = row.mutual_information("test")
    return row.mutual_information(split) if any(values.any() for values in found.values()) else {}


def _compared(metric: Heading, values: dict[str, _BySeed], resampling: Resampling) -> dict[str, Score]:
    return compare(values, resampling, higher_is_better=metric.higher_is_better)

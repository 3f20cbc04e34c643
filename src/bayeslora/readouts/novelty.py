"""Novelty: how far a question lies from the training questions, as a share of these that lie as far from each other.

The distance is the mean one to the nearest training questions, on features that are scaled to unit variance. Its
quantile among the training questions' own distances (each to the others) says the same on every task and model: 0.5 is
an ordinary question, 1 is farther out than any question trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

NEIGHBOURS = 5
MOST = 5000
"""Training questions that are kept; their distances to each other cost the square of that."""
_ROWS = 1024


@dataclass(frozen=True)
class Novelty:
    """The training questions, as what later ones are compared with.

    Args:
        scale: One over the standard deviation of each feature [features]; 0 for a constant one.
        points: Scaled training questions [questions, features].
        reference: Sorted distances of these to each other [questions].
    """

    scale: Tensor
    points: Tensor
    reference: Tensor

    @classmethod
    def of(cls, questions: Tensor) -> Novelty:
        """From the features of the training questions [questions, features]; of more than `MOST` evenly spread ones."""
        questions = questions[torch.arange(min(MOST, len(questions))) * len(questions) // min(MOST, len(questions))]
        deviation = questions.double().std(0, correction=0)
        scale = torch.where(deviation > 0, 1 / deviation.clamp_min(1e-12), 0.0).to(questions.dtype)
        points = questions * scale
        return cls(scale, points, _distance(points, points, itself=True).sort().values)

    def tensors(self) -> dict[str, Tensor]:
        """What `restored` needs, by name, for a file that has other tensors too."""
        return {f"novelty.{each.name}": getattr(self, each.name).contiguous() for each in fields(self)}

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor]) -> Novelty:
        """From a file's tensors.

        Raises:
            KeyError: One is missing.
        """
        return cls(**{each.name: tensors[f"novelty.{each.name}"] for each in fields(cls)})

    def __call__(self, questions: Tensor) -> Tensor:
        """Novelty in [0, 1] of questions [questions, features]."""
        distance = _distance(questions * self.scale, self.points)
        return torch.searchsorted(self.reference, distance, right=True).double() / len(self.reference)

    def leave_one_out(self) -> Tensor:
        """Novelty of the training questions themselves, each against the others [questions], in their order."""
        distance = _distance(self.points, self.points, itself=True)
        return torch.searchsorted(self.reference, distance, right=True).double() / len(self.reference)


def _distance(rows: Tensor, points: Tensor, *, itself: bool = False) -> Tensor:
    """Mean Euclidean distance of rows to their nearest points [rows]; `itself`: rows are points, and not their own."""
    count = min(NEIGHBOURS, len(points) - itself)
    if count < 1:
        return torch.zeros(len(rows), dtype=rows.dtype)
    parts = []
    for first in range(0, len(rows), _ROWS):
        # By differences: by products, the distance of equal rows would be rounding's, another one in each batch.
        distance = torch.cdist(rows[first : first + _ROWS], points, compute_mode="donot_use_mm_for_euclid_dist")
        if itself:
            index = torch.arange(len(distance))
            distance[index, first + index] = torch.inf
        parts.append(distance.topk(count, largest=False).values.mean(-1))
    return torch.cat(parts)

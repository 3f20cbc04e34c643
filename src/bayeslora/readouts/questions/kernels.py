"""Kernels of a question's records: linear and Gaussian ones on what the layers hold of state and question."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_SMALLEST = 1e-6


@dataclass(frozen=True)
class Kernels:
    """Blocks of features of the training records, and how they are scaled.

    A block is standardised by the training records. A linear kernel on each is x'z / d; a Gaussian one on each pooling
    (all layers of it together) is exp(-|x - z|^2 / 2d), which is 1 on the diagonal.

    Args:
        points: Standardised training features [records, poolings, layers, hidden].
        mean: Of each feature [poolings, layers, hidden].
        scale: One over the standard deviation of each; 0 for a constant one.
    """

    points: Tensor
    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, features: Tensor, weights: Tensor | None = None) -> Kernels:
        """From training features [records, poolings, layers, hidden], each as often as it weighs [records]."""
        counting = torch.ones(len(features), dtype=torch.float64) if weights is None else weights
        counting = (counting / counting.sum()).double()[:, None, None, None]
        mean = (counting * features).sum(0)
        deviation = (counting * (features - mean).square()).sum(0).sqrt().to(features.dtype)
        mean = mean.to(features.dtype)
        scale = torch.where(deviation > _SMALLEST, 1 / deviation.clamp_min(_SMALLEST), 0.0)
        return cls((features - mean) * scale, mean, scale)

    def between_points(self) -> list[Tensor]:
        """One matrix [records, records] for each kernel, float64."""
        return self._between(self.points)

    def to_points(self, features: Tensor) -> tuple[list[Tensor], Tensor]:
        """Of new features: a matrix [new, records] for each kernel, and its values at themselves [kernels, new].

        Poolings behind those of the training records are left out: heads of earlier versions have fewer.
        """
        rows = (features[:, : len(self.mean)] - self.mean) * self.scale
        squares = rows.double().square().mean(-1).permute(1, 2, 0).flatten(0, 1)
        return self._between(rows), torch.cat([squares, torch.ones(rows.shape[1], len(rows), dtype=torch.float64)])

    def _between(self, rows: Tensor) -> list[Tensor]:
        linear, gaussian = [], []
        for pooling in range(rows.shape[1]):
            distance = torch.zeros(len(rows), len(self.points), dtype=torch.float64)
            for layer in range(rows.shape[2]):
                one, other = rows[:, pooling, layer].double(), self.points[:, pooling, layer].double()
                linear.append(one @ other.mT / one.shape[-1])
                own = one.square().sum(-1, keepdim=True) + other.square().sum(-1) - 2 * (one @ other.mT)
                distance += own.clamp_min(0) / one.shape[-1] / rows.shape[2]
            gaussian.append((-distance / 2).exp())
        return linear + gaussian

"""What rounding to a number type does to posterior draws and to merged updates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayeslora.deploy.export.folder import Dtype

TOLERATED_NOISE = 0.1
"""Largest variance of rounding relative to what is rounded; at a standard deviation of one spacing it is 1/12."""


def rounded(value: Tensor, dtype: Dtype) -> Tensor:
    """`value` in float32 after rounding to `dtype`."""
    return value.to(getattr(torch, dtype)).float()


@dataclass
class Moments:
    """Running mean and sum of squared deviations of tensors of one shape (Welford's recurrence)."""

    count: int = 0
    mean: Tensor | float = 0.0
    squares: float = 0.0
    """Summed over all elements."""

    def add(self, value: Tensor) -> None:
        """One more tensor."""
        self.count += 1
        before = value - self.mean
        self.mean = self.mean + before / self.count
        self.squares += float((before * (value - self.mean)).double().sum())


class Spread:
    """How rounding changes the spread of tensors over draws.

    Rounding makes w_s + e_s of draw w_s. The noise of a tensor is sum_s |e_s - mean e|^2 / sum_s |w_s - mean w|^2:
    near 0 where the draws differ as before, 1 where they all round to the same numbers, above 1 where few weights jump
    by a whole spacing, which may keep the variance but not the posterior's directions. Where the standard deviation is
    one spacing of the numbers, e is uniform and the noise 1/12.

    Args:
        dtype: Number type to round to.
    """

    def __init__(self, dtype: Dtype):
        self.dtype = dtype
        self._moments: dict[str, tuple[Moments, Moments]] = {}

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """One more draw, before rounding."""
        for name, value in tensors.items():
            values, errors = self._moments.setdefault(name, (Moments(), Moments()))
            values.add(value)
            errors.add(rounded(value, self.dtype) - value)

    @property
    def noise(self) -> dict[str, float]:
        """Of each tensor that differs between draws."""
        pairs = self._moments.items()
        return {name: errors.squares / values.squares for name, (values, errors) in pairs if values.squares > 0}

    @property
    def lost(self) -> dict[str, float]:
        """The noise above `TOLERATED_NOISE`."""
        return {name: noise for name, noise in self.noise.items() if not noise <= TOLERATED_NOISE}

    def report(self) -> dict[str, Any]:
        """Number type, noise of all tensors together (None without any spread), how many differ, how many are lost."""
        values = sum(values.squares for values, _ in self._moments.values())
        errors = sum(self._moments[name][1].squares for name in self.noise)
        return {
            "dtype": self.dtype,
            "noise": errors / values if values else None,
            "random_tensors": len(self.noise),
            "lost_tensors": len(self.lost),
        }

    def warnings(self) -> list[str]:
        """One where the spread of tensors is lost."""
        lost = self.lost
        if not lost:
            return []
        worst = max(lost, key=lost.__getitem__)
        return [
            f"rounded to {self.dtype}, the spread of {len(lost)} of {len(self.noise)} random tensors is lost: the "
            f"variance of rounding is {lost[worst]:.2g} times that of the draws in {worst} (tolerated: "
            f"{TOLERATED_NOISE}). Serve in float32 or float16, or train a wider posterior."
        ]


def relative_error(weight: Tensor, update: Tensor, dtype: Dtype) -> float:
    """Norm of what rounding adds to an update of a weight, relative to the norm of the update; 0 for no update."""
    norm = update.norm()
    moved = rounded(weight + update, dtype) - rounded(weight, dtype)
    return float((moved - update).norm() / norm) if norm else 0.0

"""Frozen directions of earlier tasks beside the factor of the task being learned (SD-LoRA, arXiv 2501.13198)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bayeslora.posteriors.weights.base import KL, Noise, WeightPosterior

INITIAL_MAGNITUDE = 0.8
"""Of every magnitude, as in the authors' code."""


@dataclass(frozen=True)
class DirectionsWeights(WeightPosterior):
    """The factors of t tasks side by side, such that B A is the sum of the tasks' updates.

        A = [A_1; ...; A_t]                    [t r, in]
        B = [a_1 B_1, ..., a_t B_t]            [out, t r]

    A_k and B_k of earlier tasks are frozen (`directions`, of norm 1 where a task began with them); the magnitudes a_k
    are trained, and A_t and B_t are those of the family `current`, a posterior or a point mass.

    Args:
        rows: o.
        columns: i.
        side: "A" or "B": which dimension holds the ranks of the tasks.
        current: Family of the factor of task t, of r rows (A) or columns (B).
        tasks: t.
    """

    side: Literal["A", "B"]
    current: WeightPosterior
    tasks: int = 1

    @property
    def location(self) -> tuple[str, ...]:  # type: ignore[override]
        """That of the current factor, and the magnitudes, which are no variational parameters."""
        return (*self.current.location, "magnitudes")

    @property
    def fixed(self) -> tuple[str, ...]:  # type: ignore[override]
        """The directions, and what the current family has fixed."""
        return (*self.current.fixed, "directions")

    @property
    def of_layer(self) -> tuple[str, ...]:  # type: ignore[override]
        """The current family's."""
        return self.current.of_layer

    @property
    def draws_in_training(self) -> bool:  # type: ignore[override]
        """The current family's."""
        return self.current.draws_in_training

    @property
    def flipout(self) -> bool:
        """The current family's."""
        return self.current.flipout

    @property
    def kl_is_estimate(self) -> bool:
        """The current family's."""
        return self.current.kl_is_estimate

    @property
    def packed(self) -> bool:
        """As those of the current factor."""
        return self.current.packed

    @property
    def noise_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The current family's: directions are not random."""
        return self.current.noise_shapes

    def initial(self, weight: Tensor) -> dict[str, Tensor]:
        """All magnitudes at their start, and the factors that then give `weight`."""
        weight = weight.detach()
        old, new = self._split(weight if self.side == "A" else weight / INITIAL_MAGNITUDE)
        parameters = self.current.initial(new)
        like = next(iter(parameters.values()))
        # PEFT takes tensors without any numbers for broken ones, so the first task has no directions.
        if self.tasks > 1:
            parameters["directions"] = old.to(like).clone()
        if self.side == "B":
            parameters["magnitudes"] = torch.full((1, self.tasks), INITIAL_MAGNITUDE).to(like)
        return parameters

    def mean_weight(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """With the mean of the current factor."""
        return self._joined(parameters, self.current.mean_weight(parameters))

    def sample_weight(self, parameters: Mapping[str, Tensor], noise: Noise) -> Tensor:
        """With draws of the current factor."""
        return self._joined(parameters, self.current.sample_weight(parameters, noise))

    def training_weight(self, parameters: Mapping[str, Tensor], noise: Noise) -> Tensor:
        """With what training uses in the place of those draws."""
        return self._joined(parameters, self.current.training_weight(parameters, noise))

    def kl(self, parameters: Mapping[str, Tensor], noise: Noise | None) -> KL:
        """Of the current factor."""
        return self.current.kl(parameters, noise)

    def _split(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The parts of the earlier tasks and of the current one."""
        dimension = 0 if self.side == "A" else 1
        rank = weight.shape[dimension] // self.tasks
        old, new = weight.split([rank * (self.tasks - 1), rank], dim=dimension)
        return old, new

    def _joined(self, parameters: Mapping[str, Tensor], current: Tensor) -> Tensor:
        """The factor of all tasks `[..., rows, columns]`, from that of the current one."""
        dimension = -2 if self.side == "A" else -1
        parts = [current]
        if self.tasks > 1:
            directions = parameters["directions"]
            parts.insert(0, directions.expand(*current.shape[:-2], *directions.shape[-2:]))
        whole = torch.cat(parts, dim=dimension)
        if self.side == "A":
            return whole
        rank = whole.shape[-1] // self.tasks
        return whole * parameters["magnitudes"].repeat_interleave(rank, dim=-1)

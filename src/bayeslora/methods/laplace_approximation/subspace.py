"""Gradients of an item's scores by the weights of linear maps, and the directions of them that data speak about."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bayeslora.methods.laplace_approximation.recording import Recording


def weighted_gradients(
    logits: Tensor,
    recording: Recording,
    weights: Tensor,
    maps: Collection[str],
    use: Callable[[str, Tensor], None],
) -> None:
    """Hand `use` the name of each map and the gradients of K weighted sums of scores by its weight, one map at a time.

    What is alive at once are gradients at the maps' outputs, and the gradients [batch, K, out, in] of one map.

    Args:
        logits: [batch, choices].
        recording: Of the forward that gave them.
        weights: [batch, choices, K]; each of the K takes a backward pass.
        maps: Names of those in question.
        use: Called once for each map.
    """
    backward = [recording.gradients(logits, each.contiguous(), maps) for each in weights.to(logits).unbind(-1)]
    for name in maps:
        outputs = torch.stack([found.pop(name) for found in backward], 1)
        use(name, outputs.mT @ recording.inputs(name).unsqueeze(1))


@dataclass(frozen=True)
class Subspace:
    """A few directions of the weight of each map, and its unit.

    A weight [out, in] is seen with its wider side first: [width, other].

    Args:
        bases: Orthonormal directions [width, directions] of each map.
        units: Standard deviation of a map's weights that the prior calls 1.
    """

    bases: Mapping[str, Tensor]
    units: Mapping[str, float]

    def sizes(self, maps: Mapping[str, nn.Linear]) -> list[int]:
        """How many coordinates each of the maps has."""
        return [self.bases[name].shape[1] * min(one.in_features, one.out_features) for name, one in maps.items()]

    def in_units(self, name: str, gradients: Tensor) -> Tensor:
        """Gradients [..., width, other] by the weights over their unit, from those by the weights [..., out, in]."""
        return wide_first(gradients) * self.units[name]

    def coordinates(self, name: str, gradients: Tensor) -> Tensor:
        """Gradients [..., directions * other] along the directions, from `in_units`."""
        return (self.bases[name].T @ gradients).flatten(-2)


def wide_first(matrices: Tensor) -> Tensor:
    """Matrices [..., out, in] with their wider side first."""
    return matrices if matrices.shape[-2] > matrices.shape[-1] else matrices.mT

"""Heads whose logits are linear in the scaled features, and so differentiable by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bayeslora.readouts.blocks import BlockScaling, OptionFeatures
from bayeslora.readouts.contrasts import Contrasts
from bayeslora.readouts.formula import linear_weights
from bayeslora.readouts.head import Head, given


@dataclass(frozen=True)
class LinearHeads:
    """Posterior means of heads that share their scaling.

    Args:
        scaling: Of the features.
        weights: By block, of each head [heads, features].
        temperature: What utilities are divided by: sigma^2 T.
    """

    scaling: BlockScaling
    weights: Mapping[str, Tensor]
    temperature: float

    @classmethod
    def of(cls, heads: Sequence[Head]) -> LinearHeads:
        """The means of heads, with the scales and the temperature of the first."""
        weights = [linear_weights(head) for head in heads]
        stacked = {name: torch.stack([each[name] for each in weights]) for name in weights[0]}
        return cls(heads[0].scaling, stacked, heads[0].scales.noise * heads[0].noise.temperature)

    def logits(self, features: OptionFeatures, heads: Tensor) -> Tensor:
        """[items, choices], zero-sum over an item's choices; -inf for a choice that it does not have.

        Args:
            features: Of the items, with a graph or not.
            heads: Which one reads each item [items].
        """
        contrasts = Contrasts(features.mask)
        owners = heads[contrasts.owners]
        inputs = self.scaling(features)
        terms = [(inputs[name] * weights[owners]).sum(-1) for name, weights in self.weights.items()]
        utilities = contrasts.utilities(contrasts.padded(torch.stack(terms).sum(0)))
        return (utilities / self.temperature).masked_fill(~features.mask, -torch.inf)

    def tensors(self) -> dict[str, Tensor]:
        """What `restored` needs, by name."""
        named = {f"scale.{name}": scale for name, scale in self.scaling.scales.items()}
        named |= {f"weight.{name}": weight for name, weight in self.weights.items()}
        return named | {"temperature": torch.tensor(self.temperature, dtype=torch.float64)}

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor]) -> LinearHeads:
        """From the tensors of a file.

        Raises:
            KeyError: One is missing.
        """
        parts: dict[str, dict[str, Tensor]] = {"scale": {}, "weight": {}}
        for name, tensor in tensors.items():
            kind, _, block = name.partition(".")
            if kind in parts:
                parts[kind][block] = tensor
        return cls(BlockScaling(parts["scale"]), parts["weight"], float(tensors["temperature"]))


def cross_fitted(head: Head, features: OptionFeatures, labels: Tensor, folds: Tensor) -> LinearHeads:
    """For each fold the head of all items but its own, with the scales and the temperature of all.

    Args:
        head: Fitted to all items.
        features: Of the items that it was fitted to.
        labels: [items].
        folds: Of each item [items], counted from 0.
    """
    others = [(folds != fold).nonzero()[:, 0] for fold in range(int(folds.max()) + 1)]
    return LinearHeads.of([given(head, features[kept], labels[kept], head.precision[kept]) for kept in others])

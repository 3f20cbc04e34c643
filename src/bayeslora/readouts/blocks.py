"""Blocks of features and the linear kernel of each: what a prior over utilities is made of.

A block is a vector of each choice: a layer and a pooling of its hidden states, or a few numbers known of it. Features
are divided by their standard deviation over the training choices and turned into contrasts within the item. A block of
hidden states is then divided by the item's root mean square, so that all items weigh alike; other blocks keep their
size. Every kernel has a mean of 1 on its diagonal in training, so that the weights of blocks are comparable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bayeslora.readouts.contrasts import Contrasts


@dataclass(frozen=True)
class OptionFeatures:
    """What is known of items before the head.

    Args:
        hidden: Vectors of the choices by name of the block, [items, choices, features].
        mask: [items, choices], True where an item has that choice.
        questions: Features of the questions, for novelty [items, features].
        numbers: Further blocks by name, [items, choices, numbers], such as likelihoods.
    """

    hidden: Mapping[str, Tensor]
    mask: Tensor
    questions: Tensor
    numbers: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        """Items."""
        return len(self.mask)

    def __getitem__(self, items: Tensor | slice) -> OptionFeatures:
        """Those of some items."""
        hidden, numbers = ({name: block[items] for name, block in part.items()} for part in (self.hidden, self.numbers))
        return OptionFeatures(hidden, self.mask[items], self.questions[items], numbers)

    def with_numbers(self, **blocks: Tensor) -> OptionFeatures:
        """With further blocks [items, choices, numbers]."""
        return OptionFeatures(self.hidden, self.mask, self.questions, {**self.numbers, **blocks})


@dataclass(frozen=True)
class BlockScaling:
    """How features become the inputs of the kernels, fitted to training items.

    Args:
        scales: By name of the block, what each feature is multiplied by [features]; 0 for a constant one.
    """

    scales: Mapping[str, Tensor]

    @classmethod
    def of(cls, features: OptionFeatures, weights: Tensor | None = None) -> BlockScaling:
        """From the training items.

        Args:
            features: Theirs.
            weights: How often each counts [items]; default: once.

        Raises:
            ValueError: A feature is NaN or infinite.
        """
        blocks = {**features.hidden, **features.numbers}
        for name, block in blocks.items():
            if not bool(torch.isfinite(block[features.mask]).all()):
                raise ValueError(
                    f"features must be finite numbers, got NaN or infinity in {name!r}; a model that overflows in "
                    "float16 needs float32 or bfloat16 (model.dtype)."
                )
        owners = features.mask.nonzero()[:, 0]
        counting = None if weights is None else weights[owners]
        scales = {name: _inverse_deviation(block[features.mask], counting) for name, block in blocks.items()}
        for name in features.numbers:
            squares = (cls({name: scales[name]})(features)[name].double() ** 2).sum(-1)
            size = float(
                squares.mean() if weights is None else _mean(squares, weights[Contrasts(features.mask).owners])
            )
            scales[name] = scales[name] * size**-0.5 if size > 0 else scales[name]
        return cls(scales)

    def __call__(self, features: OptionFeatures) -> dict[str, Tensor]:
        """Inputs of each kernel [contrasts, features], float32, in the order of the blocks."""
        contrasts, present = Contrasts(features.mask), features.mask.unsqueeze(-1)
        inputs = {}
        for name, scale in self.scales.items():
            hidden = name in features.hidden
            block = (features.hidden if hidden else features.numbers)[name]
            rows = contrasts.flat(torch.where(present, block.float() * scale, 0.0))
            inputs[name] = _unit(rows, contrasts) if hidden else rows
        return inputs


def _inverse_deviation(rows: Tensor, weights: Tensor | None) -> Tensor:
    rows = rows.double()
    size = rows.abs().amax(0)
    deviation = rows.std(0, correction=0) if weights is None else _deviation(rows, weights)
    return torch.where(deviation > 1e-9 * size, 1 / deviation.clamp_min(1e-30), 0.0).float()


def _deviation(rows: Tensor, weights: Tensor) -> Tensor:
    return _mean((rows - _mean(rows, weights)).square(), weights).sqrt()


def _mean(rows: Tensor, weights: Tensor) -> Tensor:
    return torch.einsum("r...,r->...", rows, weights.to(rows.dtype)) / weights.sum()


def _unit(rows: Tensor, contrasts: Contrasts) -> Tensor:
    """With a mean squared norm of 1 over each item's contrasts; zero where its choices are alike."""
    owners = contrasts.owners
    squares = torch.zeros(len(contrasts.mask), dtype=rows.dtype).index_add(0, owners, (rows**2).sum(-1))
    mean = squares / (contrasts.mask.sum(-1) - 1).clamp_min(1)
    return torch.where(mean[owners].unsqueeze(-1) > 0, rows * mean[owners].clamp_min(1e-30).rsqrt().unsqueeze(-1), 0.0)

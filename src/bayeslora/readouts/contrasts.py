"""Contrasts within an item: what a softmax over its choices can tell apart.

A softmax does not change when all choices of an item gain the same utility, so an item with C choices holds C - 1
numbers. `Contrasts` turns the choices' rows into C - 1 rows by an orthonormal (Helmert) matrix H and back by its
transpose; distances, and so Gaussian noise, stay what they are. Row k of H compares choice k + 1 with the choices
before it, hence items with fewer choices need the first rows of the same matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor


def helmert(choices: int) -> Tensor:
    """H [choices - 1, choices]: orthonormal rows that sum to zero, float64.

    >>> matrix = helmert(4)
    >>> bool(torch.allclose(matrix @ matrix.T, torch.eye(3, dtype=torch.float64)))
    True
    """
    above = torch.arange(1, choices, dtype=torch.float64).unsqueeze(1)
    column = torch.arange(choices)
    rows = torch.where(column < above, 1.0, torch.where(column == above, -above, 0.0))
    return rows / (above * (above + 1)).sqrt()


class Contrasts:
    """The contrasts of items with several choices, each item's behind each other.

    Args:
        mask: [items, choices], True where an item has that choice; each item's choices are its first ones.

    Attributes:
        places: [items, choices - 1], the row of each contrast among all of them; -1 for one that an item has not.

    Raises:
        ValueError: An item has no choice.
    """

    def __init__(self, mask: Tensor):
        if not bool(mask.any(-1).all()):
            raise ValueError(f"every item needs a choice, but item {int((~mask.any(-1)).nonzero()[0])} has none.")
        self.mask = mask
        self.matrix = helmert(mask.shape[1])
        self._real = mask[:, 1:]
        self.places = torch.where(self._real, self._real.flatten().cumsum(0).reshape(self._real.shape) - 1, -1)

    def __len__(self) -> int:
        """Contrasts of all items."""
        return int(self._real.sum())

    @property
    def owners(self) -> Tensor:
        """The item of each contrast [contrasts]."""
        return self._real.nonzero()[:, 0]

    def flat(self, rows: Tensor) -> Tensor:
        """Contrasts [contrasts, ...] of the choices' rows [items, choices, ...], whatever stands behind the mask."""
        present = self.mask.reshape(*self.mask.shape, *[1] * (rows.dim() - 2))
        clean = torch.where(present, rows, torch.zeros((), dtype=rows.dtype))
        return torch.einsum("dc,ic...->id...", self.matrix.to(rows.dtype), clean)[self._real]

    def padded(self, rows: Tensor) -> Tensor:
        """[items, choices - 1, ...] of flat rows [contrasts, ...]; zero where an item has no such contrast."""
        out = torch.zeros(*self._real.shape, *rows.shape[1:], dtype=rows.dtype)
        out[self._real] = rows
        return out

    def utilities(self, rows: Tensor) -> Tensor:
        """Utilities [..., items, choices] of padded contrasts [..., items, choices - 1]; their sum is zero."""
        return rows @ self.matrix.to(rows.dtype)

    def targets(self, labels: Tensor) -> Tensor:
        """Contrasts [contrasts, 1] of the one-hot labels, float64; of distributions of labels their means.

        Args:
            labels: Choices [items], or the probabilities of all of them [items, choices].

        Raises:
            ValueError: A label is no choice of its item.
        """
        if labels.dim() == 2:
            return self.flat(labels.double().unsqueeze(-1))
        known = (labels >= 0) & (labels < self.mask.sum(-1))
        if not bool(known.all()):
            first = int((~known).nonzero()[0])
            raise ValueError(
                f"labels must be choices: item {first} has {int(self.mask[first].sum())} of them and label "
                f"{int(labels[first])}, counted from 0."
            )
        one_hot = torch.nn.functional.one_hot(labels, self.mask.shape[1]).double()
        return self.flat(one_hot.unsqueeze(-1))

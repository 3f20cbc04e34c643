"""Texts that share a forward as one row, in which each has the numbers that it has alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bayeslora.scoring.cloze import ClozeBatch


class RowBatch(ClozeBatch):
    """One row of several texts (`bayeslora.readouts.row.Row`), which a mask and positions keep apart.

    `attention_mask` [1, 1, tokens, tokens]; `groups` [groups, tokens]: where the tokens of each group stand, -1 behind
    them. To be used where the model `reads_packed` rows: there is no other form of it.
    """

    @property
    def kept(self) -> int:
        """The last position: nobody asks for logits."""
        return 1

    def suited_to(self, model: nn.Module) -> RowBatch:
        """Itself."""
        return self

    def pooled(self, hidden: Tensor) -> Tensor:
        """Mean and last of the tokens of each group [rows, groups, layers, poolings, hidden], float32.

        Args:
            hidden: [rows, tokens, layers, hidden].
        """
        # Group by group: sums over a whole row would be rounded in another way for what stands beside a group.
        own = [hidden[:, places[places >= 0]].float() for places in self["groups"]]
        return torch.stack([torch.stack([tokens.mean(1), tokens[:, -1]], 2) for tokens in own], 1)

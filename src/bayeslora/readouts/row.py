"""Texts, each with others behind it, in one row of a forward: [text | behind 1 | behind 2 | ... | text | ...].

What stands behind a text sees the text and itself, at the positions that it has alone: a text is read once for all
that stands behind it, and nothing has other numbers for what stands beside it (`bayeslora.readouts.together`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bayeslora.models.layers import base_model
from bayeslora.readouts.hidden import hidden_states
from bayeslora.readouts.together import attending_by_part
from bayeslora.scoring.base import forward_options
from bayeslora.scoring.cloze import attention_mask

__all__ = ["Row", "Text"]

Text = tuple[Sequence[int], Sequence[Sequence[int]]]
"""Tokens of a text, and of what stands behind it."""


@dataclass(frozen=True)
class Row:
    """A row of tokens.

    Args:
        tokens: Their ids.
        positions: Where each one would stand without the others.
        parts: For each text and each one behind it the slices of the row that it sees, the last of them itself.
    """

    tokens: list[int]
    positions: list[int]
    parts: list[list[slice]]

    @classmethod
    def of(cls, texts: Sequence[Text]) -> Row:
        """The row of `texts`."""
        row = cls([], [], [])
        for text, behind in texts:
            shared = row._added(text, [])
            for own in behind:
                row._added(own, [shared])
        return row

    def _added(self, tokens: Sequence[int], seen: list[slice]) -> slice:
        start = sum(part.stop - part.start for part in seen)
        own = slice(len(self.tokens), len(self.tokens) + len(tokens))
        self.tokens.extend(tokens)
        self.positions.extend(range(start, start + len(tokens)))
        self.parts.append([*seen, own])
        return own

    def hidden(self, model: nn.Module, layers: Sequence[int]) -> list[Tensor]:
        """Hidden states [layers, tokens, hidden] of each part, in the model's number type; the layers above do not run.

        Args:
            model: A causal language model that heeds masks and positions, which not all do.
            layers: Of `read_layers`, rising.
        """
        device = _device(model)
        ids, positions = (torch.tensor([row], device=device) for row in (self.tokens, self.positions))
        options = forward_options(model, logits_to_keep=1, use_cache=False)
        mask = attention_mask(model, self._allowed(device), positions)
        with attending_by_part(self.parts):
            states, _ = hidden_states(
                model,
                layers,
                lambda: model(input_ids=ids, attention_mask=mask, position_ids=positions, **options),
            )
        whole = torch.cat(states)
        return [whole[:, part[-1]] for part in self.parts]

    def _allowed(self, device: torch.device) -> Tensor:
        """Which tokens [1, 1, tokens, tokens] each one sees."""
        allowed = torch.zeros(len(self.tokens), len(self.tokens), dtype=torch.bool, device=device)
        for *before, own in self.parts:
            for seen in before:
                allowed[own, seen] = True
            allowed[own, own] = torch.ones_like(allowed[own, own]).tril()
        return allowed[None, None]


def _device(model: nn.Module) -> torch.device:
    device: torch.device = next(base_model(model).parameters()).device
    return device

"""Texts, each with others behind it, in one row of a forward: [beginning | text | behind 1 | ... | text | ...].

What stands behind a text sees the text and itself, at the positions that it has alone: a text is read once for all
that stands behind it, and nothing has other numbers for what stands beside it (`bayeslora.readouts.together`). What
texts begin with, such as the frame of a chat, is read once for all of them.
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

Text = tuple[list[int], list[list[int]]]
"""Tokens of a text, and of what stands behind it."""


def beginning(texts: Sequence[list[int]]) -> list[int]:
    """The tokens that all texts begin with, so far that each has one left.

    >>> beginning([[5, 6, 7, 8], [5, 6, 9], [5, 6]])
    [5]
    """
    # What the first and the last in alphabetical order share, all others share too.
    first, last = min(texts), max(texts)
    pairs = enumerate(zip(first, last, strict=False))
    same = next((place for place, (one, other) in pairs if one != other), len(first))
    return first[: min(same, min(map(len, texts)) - 1)]


@dataclass(frozen=True)
class Row:
    """A row of tokens.

    Args:
        tokens: Their ids.
        positions: Where each one would stand without the others.
        parts: For each part the slices of the row that it sees, the last of them itself. A part is the beginning, what
            a text has behind it, a text that does not begin so, or what stands behind a text.
        texts: The slices of each text, and those of what stands behind it.
    """

    tokens: list[int]
    positions: list[int]
    parts: list[list[slice]]
    texts: list[tuple[list[slice], list[slice]]]

    @classmethod
    def of(cls, texts: Sequence[Text], begin: list[int]) -> Row:
        """The row of `texts`; those that go on behind `begin` share it.

        A text is divided there in any company: attention over other pieces would round its sums in another way.
        """
        row = cls([], [], [], [])
        shares = [len(text) > len(begin) > 0 and text[: len(begin)] == begin for text, _ in texts]
        beginning = [row._added(begin, [])] if any(shares) else []
        for (text, behind), shared in zip(texts, shares, strict=True):
            before = beginning if shared else []
            whole = [*before, row._added(text[len(begin) :] if shared else text, before)]
            row.texts.append((whole, [row._added(own, whole) for own in behind]))
        return row

    def _added(self, tokens: Sequence[int], seen: list[slice]) -> slice:
        start = sum(part.stop - part.start for part in seen)
        own = slice(len(self.tokens), len(self.tokens) + len(tokens))
        self.tokens.extend(tokens)
        self.positions.extend(range(start, start + len(tokens)))
        self.parts.append([*seen, own])
        return own

    def hidden(self, model: nn.Module, layers: Sequence[int]) -> list[tuple[Tensor, list[Tensor]]]:
        """Hidden states [layers, tokens, hidden] of each text and of what stands behind it, in the model's number type.

        The layers above those that are read do not run.

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
        found = torch.cat(states)
        return [
            (torch.cat([found[:, part] for part in text], 1), [found[:, part] for part in behind])
            for text, behind in self.texts
        ]

    def tensors(self) -> dict[str, Tensor]:
        """Those of a `RowBatch`, whose groups are each text and then what stands behind it."""
        places = [
            torch.cat([torch.arange(part.start, part.stop) for part in parts])
            for text, behind in self.texts
            for parts in (text, *([own] for own in behind))
        ]
        return {
            "input_ids": torch.tensor([self.tokens]),
            "position_ids": torch.tensor([self.positions]),
            "attention_mask": self._allowed(torch.device("cpu")),
            "lengths": torch.tensor([len(self.tokens)]),
            "groups": nn.utils.rnn.pad_sequence(places, batch_first=True, padding_value=-1),
        }

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

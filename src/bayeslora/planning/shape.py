"""How large the batches of a task are, and a batch of that size on the meta device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bayeslora.scoring import ChoiceBatch, Letter, Scoring, get_scoring
from bayeslora.scoring.classification import ClassificationBatch
from bayeslora.scoring.cloze import ClozeBatch
from bayeslora.scoring.letter import LetterBatch

_LONGEST = 32
"""Items that are tokenised to find the longest."""


@dataclass(frozen=True)
class Shape:
    """The largest item of a task.

    Args:
        scoring: Name of the scoring; what is neither a classification nor derived from Letter counts as cloze.
        tokens: Tokens of a row.
        answer_tokens: Tokens of all its choices together (cloze).
        choices: Choices of an item.
        read: Positions of a row that the head reads (cloze), which need logits over the whole vocabulary. Default:
            the end of the question and all of each choice but its last token.
    """

    scoring: str
    tokens: int
    answer_tokens: int = 1
    choices: int = 4
    read: int = 0

    def __post_init__(self) -> None:
        """Check the sizes; the default of `read`."""
        if min(self.tokens, self.answer_tokens, self.choices) < 1:
            raise ValueError(f"tokens, answer_tokens and choices must be at least 1, got {self}.")
        if self.scoring == "cloze" and self.answer_tokens >= self.tokens:
            object.__setattr__(self, "answer_tokens", max(1, self.tokens - 1))
        if not self.read:
            object.__setattr__(self, "read", max(1, self.answer_tokens - self.choices + 1))

    @staticmethod
    def measured(scoring: Scoring, items: Sequence[Any]) -> Shape:
        """That of the longest items by their letters: no batch is larger, as far as letters tell the tokens."""
        longest = sorted(items, key=lambda item: len(item.question) + sum(map(len, item.choices)))[-_LONGEST:]
        batch = scoring(longest)
        answer = int(batch["source"].shape[1]) if isinstance(batch, ClozeBatch) else 1
        # A batch spreads what it reads evenly over its rows; the largest batch is one of such items alone.
        most = max(len(item.choices) for item in items)
        read = max(scoring([item]).logit_positions for item in longest)
        return Shape(scoring.name, int(batch["input_ids"].shape[1]), answer, most, read)

    @staticmethod
    def union(shapes: Sequence[Shape]) -> Shape:
        """The largest in every extent; all of one scoring."""
        names = ("tokens", "answer_tokens", "choices", "read")
        return Shape(shapes[0].scoring, **{name: max(getattr(shape, name) for shape in shapes) for name in names})

    def batch(self, rows: int, device: torch.device | str = "meta") -> ChoiceBatch:
        """A batch of `rows` items of this size; on a real device every token is token 0."""

        def whole(*sizes: int) -> torch.Tensor:
            return torch.zeros(rows, *sizes, dtype=torch.long, device=device)

        common = {
            "input_ids": whole(self.tokens),
            "position_ids": torch.arange(self.tokens, device=device).expand(rows, -1).contiguous(),
            "choice_mask": torch.ones(rows, self.choices, dtype=torch.bool, device=device),
            "labels": whole(),
            # For each pair of tokens: what transformers makes of a padding mask itself, for which it would have to look
            # at the mask's values, and the meta device has none.
            "attention_mask": self._causal(device).expand(rows, -1, -1, -1),
        }
        kind = get_scoring(self.scoring)
        if issubclass(kind, Letter):
            return LetterBatch(**common, class_token_ids=torch.arange(self.choices, device=device))
        if kind.takes_classes:
            positions = torch.arange(self.choices, device=device).expand(rows, -1)
            return ClassificationBatch(**common, class_positions=positions)
        answer = {name: whole(self.answer_tokens) for name in ("source", "target", "choice")}
        return ClozeBatch(**common, **answer, read=whole(self.read))

    def _causal(self, device: torch.device | str) -> torch.Tensor:
        return torch.ones(1, 1, self.tokens, self.tokens, dtype=torch.bool, device=device).tril()

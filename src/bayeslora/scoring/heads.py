"""Scoring by heads of typed questions: a question is read behind its state, and heads know its options from labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bayeslora.scoring.base import ChoiceBatch, ChoiceItem, choice_labels, choice_mask
from bayeslora.scoring.cloze import ClozeBatch, packed_rows
from bayeslora.scoring.codes.items import DecisionScoring, ranked_weights, typed
from bayeslora.scoring.rows import RowBatch
from bayeslora.scoring.unpacked import UnpackedBatch
from bayeslora.tasks.decisions.items import DecisionItem

_ROWS = ("input_ids", "attention_mask", "position_ids", "read", "source", "target", "choice", "lengths")
_UNPACKED = ("input_ids", "attention_mask", "answer", "real")
_JOINED = ("input_ids", "attention_mask", "position_ids", "lengths", "groups")


class QuestionBatch(ChoiceBatch):
    """Rows [padding | state | question | ...], packed as `ClozeBatch` packs choices; an item is one of the questions.

    Or one row of several states, each with its questions (`RowBatch`).

    Keys beside those of its rows: `asked` [rows, questions], True where a row has that question; `row`, `state` and
    `place` [batch]: the row of an item, and there the groups of tokens that are its state, the first of a packed row,
    and its question; `weights` [batch], of the items' labels in training.
    """

    reading: ClassVar[Any] = None
    """`bayeslora.readouts.questions.QuestionReading`."""

    @property
    def rows(self) -> ClozeBatch | UnpackedBatch:
        """What the model reads, each question as a choice."""
        if "groups" in self:
            return RowBatch({name: self[name] for name in _JOINED} | {"choice_mask": self["asked"]})
        kind, names = (UnpackedBatch, _UNPACKED) if "real" in self else (ClozeBatch, _ROWS)
        return kind({name: self[name] for name in names} | {"choice_mask": self["asked"]})

    def suited_to(self, model: nn.Module) -> QuestionBatch:
        """One row per question for a model that would not read packed rows right."""
        packed = self.rows
        rows = packed.suited_to(model)
        if type(rows) is type(packed):
            return self
        own = {name: value for name, value in self.items() if name not in _ROWS}
        return type(self)(own | {name: rows[name] for name in _UNPACKED})

    def raw_logits(self, model: nn.Module) -> Tensor:
        """What the heads say of each option [rows, choices].

        Raises:
            RuntimeError: No heads read the batch.
        """
        if self.reading is None:
            raise RuntimeError("no heads read this batch; `bayeslora train --task.scoring heads` fits them.")
        logits: Tensor = self.reading.logits(model, self)
        return logits


class HeadScoring(DecisionScoring):
    """Reads questions without their options.

    Attributes:
        reads: Makes of a batch and its items one whose logits are those of heads.
    """

    name = "heads"
    by_heads = True
    announces = True
    reads: Callable[[QuestionBatch, Sequence[DecisionItem]], QuestionBatch] | None = None

    def __call__(self, items: Sequence[ChoiceItem]) -> QuestionBatch:
        """Batch of `items`, each in a row of its own.

        Raises:
            TooLongError: A prompt does not fit.
            ValueError: An item is no typed decision.
        """
        asked = [typed(item, self.name) for item in items]
        states = [self.prompts.state_tokens(item.state) for item in asked]
        rows = [
            (state, [self.prompts.without_options(state, item.asked)])
            for state, item in zip(states, asked, strict=True)
        ]
        return self.batch(rows, [(row, 0) for row in range(len(rows))], asked)

    def batch(
        self,
        rows: Sequence[tuple[list[int], list[list[int]]]],
        places: Sequence[tuple[int, int]],
        items: Sequence[DecisionItem],
    ) -> QuestionBatch:
        """The batch of items whose prompts are in tokens.

        Args:
            rows: Tokens of a state, and of each question behind it.
            places: The row of each item, and which of the row's questions it is.
            items: The items.
        """
        return self.of_rows(self.packed(rows), [(row, 0, place + 1) for row, place in places], items)

    def packed(self, rows: Sequence[tuple[list[int], list[list[int]]]]) -> dict[str, Tensor]:
        """Tensors of rows, each of a state and of questions behind it, in tokens."""
        most = max(len(questions) for _, questions in rows)
        asked = torch.tensor([[place < len(questions) for place in range(most)] for _, questions in rows])
        return packed_rows(rows, self.tokenizer.pad_token_id) | {"asked": asked}

    def of_rows(
        self,
        rows: dict[str, Tensor],
        places: Sequence[tuple[int, int, int]],
        items: Sequence[DecisionItem],
        width: int = 0,
    ) -> QuestionBatch:
        """The batch of items that stand in rows.

        Args:
            rows: Tensors of the rows, with `asked`.
            places: `row`, `state` and `place` of each item.
            items: The items.
            width: Choices that the batch has at least.
        """
        real = choice_mask(items)
        row, state, place = torch.tensor(places).unbind(1)
        batch = QuestionBatch(
            **rows,
            row=row,
            state=state,
            place=place,
            choice_mask=nn.functional.pad(real, (0, max(0, width - real.shape[1]))),
            weights=torch.tensor([item.weight for item in items]),
            **ranked_weights(items, self.ranked),
            **choice_labels(items),
        )
        return batch if self.reads is None else self.reads(batch, items)

"""What the middle layers hold of a state and of each question behind it; the state is read once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bayeslora.models.layers import evaluating
from bayeslora.readouts.hidden import hidden_states, read_layers
from bayeslora.scoring.codes import CodeReader, TooLongError
from bayeslora.scoring.codes.reading import Prefix
from bayeslora.tasks.decisions import Question

__all__ = ["DEPTHS", "HiddenReader", "Vectors"]

DEPTHS = (1 / 3, 1 / 2, 2 / 3)
"""Of the layers behind which is read; those above do not run."""


class Vectors(NamedTuple):
    """Hidden states of a state and its questions, float32 on the CPU.

    Args:
        state: Mean over the state's tokens [layers, hidden].
        questions: Mean over each question's tokens, and at its last [questions, layers, 2, hidden].
    """

    state: Tensor
    questions: Tensor


class HiddenReader:
    """Reads `Vectors` in the prompt of a `CodeReader`, without the options: heads know them from the labels.

    Args:
        reader: The reader, with its model.
    """

    def __init__(self, reader: CodeReader):
        self.reader = reader
        self.layers = read_layers(reader.model, DEPTHS)

    def __call__(self, state: Any, questions: Sequence[Question]) -> Vectors:
        """Vectors of a state and of questions about it.

        Raises:
            TooLongError: They do not fit into what the model reads.
        """
        before = self.reader.state_tokens(state)
        rows = [self.question_tokens(question) for question in questions]
        longest = len(before) + max(map(len, rows), default=0)
        if longest > self.reader.max_length:
            raise TooLongError(longest, self.reader.max_length)
        with torch.no_grad(), evaluating(self.reader.model):
            prefix = Prefix(self.reader.model, before, read=False)
            hidden = self._hidden(lambda: prefix.forward([before], prefix.cache))
            asked = [self._question(prefix, row) for row in rows]
        stacked = torch.stack(asked) if asked else hidden.new_zeros(0, len(self.layers), 2, hidden.shape[-1])
        return Vectors(hidden.mean(1), stacked)

    def question_tokens(self, question: Question) -> list[int]:
        """Tokens of a question behind the state."""
        text = self.reader.template.show_question(question, [], []) + self.reader.end
        return list(self.reader.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _question(self, prefix: Prefix, row: list[int]) -> Tensor:
        cache = copy.deepcopy(prefix.cache)
        hidden = self._hidden(lambda: prefix.forward([row], cache))
        return torch.stack([hidden.mean(1), hidden[:, -1]], 1)

    def _hidden(self, forward: Callable[[], Any]) -> Tensor:
        """Hidden states [layers, tokens, hidden] of one row."""
        states, _ = hidden_states(self.reader.model, self.layers, forward)
        return torch.stack([state[0].float().cpu() for state in states])

"""What the middle layers hold of a state and of each question behind it; a state is read once for its questions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bayeslora.models import load_base_model
from bayeslora.models.layers import base_model, evaluating
from bayeslora.models.number_type import number_type
from bayeslora.models.positions import readable_tokens
from bayeslora.readouts.hidden import hidden_states, read_layers
from bayeslora.readouts.questions.reading import DEPTHS
from bayeslora.readouts.row import Row, beginning
from bayeslora.runs.decisions.config import DecisionConfig
from bayeslora.scoring.codes import CodeReader, Template, TooLongError
from bayeslora.scoring.codes.reading import Prefix
from bayeslora.system.log import logger
from bayeslora.tasks.decisions import Question

TOLERANCE = 0.05
"""Median difference within a vector that is read in a row and alone, over the median of its size. SmolLM2 in bfloat16
has 0 (most numbers are the same to the bit); it has 0.28 with positions that go on from question to question, and 1.3
where tokens see nine tenths of the row."""

_ROW = 2048
"""Tokens of a row: its mask costs the square of them. A state of more than half of them is read by itself."""

_TOGETHER = 1024
"""Tokens of several prompts in a row; on a CPU the time by token falls no further (studies/cost/decisions)."""


_ANY = ("a", "B", "1", {"a": 1}, ["a"], '"', "(")
"""States that have nothing in common."""


class Prompt(NamedTuple):
    """Tokens of a state, and of each question behind it."""

    state: list[int]
    questions: list[list[int]]

    @property
    def tokens(self) -> int:
        """How many are read, the state's once."""
        return len(self.state) + sum(map(len, self.questions))


class Vectors(NamedTuple):
    """Hidden states of a state and its questions, float32 on the CPU.

    Args:
        state: Mean over the state's tokens, and at the last of them [layers, 2, hidden].
        questions: The same of each question [questions, layers, 2, hidden].
    """

    state: Tensor
    questions: Tensor


def open_reader(config: DecisionConfig, template: Template) -> CodeReader:
    """The base model of a decision model, with the prompt in which it is read."""
    base, tokenizer = load_base_model(
        config.model,
        dtype=number_type(config.dtype, config.model, config.device),
        revision=config.revision,
        device=config.device,
    )
    return CodeReader(base, tokenizer, template=template, orders=config.orders, max_length=config.max_length)


class _Piece(NamedTuple):
    """A part of a prompt that fits into a row, and whether it is the prompt's last."""

    prompt: Prompt
    last: bool


class HiddenReader:
    """Reads `Vectors` in the prompt of a `CodeReader`, without the options: heads know them from the labels.

    States and their questions share a forward as one row, in which each question sees its state and itself, and what
    all states begin with is read once. Where a model does not read such rows right, and behind a long state, each
    question is read in a forward of its own behind the keys and values of the state.

    Args:
        reader: The reader, with its model.

    Attributes:
        begin: Tokens that states begin with.
        room: Tokens of a row at most.
        together: Tokens of several prompts in a row at most.
    """

    def __init__(self, reader: CodeReader):
        self.reader = reader
        self.layers = read_layers(reader.model, DEPTHS)
        self.begin = beginning([reader.state_tokens(state) for state in _ANY])
        self.question_tokens = reader.question_tokens
        self.room = min(_ROW, readable_tokens(reader.model) or _ROW)
        self.together = min(_TOGETHER, self.room)
        self._tried, self._distrusted = 0, False

    def __call__(self, state: Any, questions: Sequence[Question]) -> Vectors:
        """Vectors of a state and of questions about it.

        Raises:
            TooLongError: They do not fit into what the model reads.
        """
        return next(self.vectors([(state, questions)]))

    def announcing(self, questions: Iterable[Question]) -> HiddenReader:
        """What reads states behind these questions (`Template.announcing`)."""
        template = self.reader.template.announcing(questions)
        return self if template == self.reader.template else HiddenReader(self.reader.in_prompt(template))

    def vectors(self, asked: Iterable[tuple[Any, Sequence[Question]]]) -> Iterator[Vectors]:
        """Vectors of states and of questions about each, in their order; as many as fit share a forward.

        Raises:
            TooLongError: One does not fit into what the model reads.
        """
        return self.each(self.prompt(self.reader.state_tokens(state), questions) for state, questions in asked)

    def prompt(self, state: list[int], questions: Sequence[Question]) -> Prompt:
        """Questions behind the tokens of a state.

        Raises:
            TooLongError: They do not fit into what the model reads.
        """
        found = Prompt(state, [self.question_tokens(question) for question in questions])
        longest = len(found.state) + max(map(len, found.questions), default=0)
        if longest > self.reader.max_length:
            raise TooLongError(longest, self.reader.max_length)
        return found

    def read(self, prompts: Sequence[Prompt]) -> list[Vectors]:
        """Vectors of each prompt, the same whatever stands beside it."""
        return list(self.each(prompts))

    def each(self, prompts: Iterable[Prompt]) -> Iterator[Vectors]:
        """The same, each as soon as it is there; prompts are taken as they are needed."""
        pieces = (piece for prompt in prompts for piece in self._pieces(prompt))
        parts: list[Vectors] = []
        for row in self._rows(pieces):
            for piece, vectors in zip(row, self._together([piece.prompt for piece in row]), strict=True):
                parts.append(vectors)
                if piece.last:
                    yield Vectors(parts[0].state, torch.cat([part.questions for part in parts]))
                    parts = []

    def rows(self, prompts: Iterable[Prompt]) -> Iterator[list[Prompt]]:
        """Prompts, or the parts of them that fit into a row, as they are read together."""
        pieces = (piece for prompt in prompts for piece in self._pieces(prompt))
        return ([piece.prompt for piece in row] for row in self._rows(pieces))

    def _pieces(self, prompt: Prompt) -> list[_Piece]:
        """A prompt in parts that fit into a row, each with the state; one of a long state is whole."""
        if self._is_long(prompt.state):
            return [_Piece(prompt, last=True)]
        pieces = [Prompt(prompt.state, [])]
        for question in prompt.questions:
            if pieces[-1].questions and pieces[-1].tokens + len(question) > self.room:
                pieces.append(Prompt(prompt.state, []))
            pieces[-1].questions.append(question)
        return [_Piece(piece, last=piece is pieces[-1]) for piece in pieces]

    def _rows(self, pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
        """Pieces behind each other that are read together; one of a long state is by itself."""
        row: list[_Piece] = []
        left = 0
        for piece in pieces:
            needed = self.room + 1 if self._is_long(piece.prompt.state) else piece.prompt.tokens
            further = needed - self._shared(piece.prompt)
            if row and further > left:
                yield row
                row = []
            left = left - further if row else self.together - needed
            row.append(piece)
        if row:
            yield row

    def _shared(self, prompt: Prompt) -> int:
        """Tokens that it does not add to a row in which others begin as it does."""
        return len(self.begin) if prompt.state[: len(self.begin)] == self.begin else 0

    def _is_long(self, state: list[int]) -> bool:
        return len(state) > self.room // 2

    def _together(self, prompts: Sequence[Prompt]) -> list[Vectors]:
        row = Row.of(prompts, self.begin)
        with torch.no_grad(), evaluating(self.reader.model):
            if self._distrusted or self._is_long(prompts[0].state) or len(row.tokens) > self.room:
                return [self._one_by_one(prompt) for prompt in prompts]
            return self._row(row) if len(row.tokens) <= self._tried else self._on_trial(prompts, row)

    def _row(self, row: Row) -> list[Vectors]:
        found = row.hidden(self.reader.model, self.layers)
        return [_vectors(_pooled(state), list(map(_pooled, questions))) for state, questions in found]

    def _on_trial(self, prompts: Sequence[Prompt], row: Row) -> list[Vectors]:
        """Prompts in a row that is longer than all before: some are read both ways, and it is trusted where both agree.

        Models that take no positions (ALiBi), have a mask of their own (local attention) or carry a state along do not
        read rows right, and most of them do not say so. The last prompt is farthest from the beginning of the row, and
        in the longest one questions are farthest from their state.
        """
        longest = max(range(len(prompts)), key=lambda place: prompts[place].tokens)
        both = {place: self._one_by_one(prompts[place]) for place in {longest, len(prompts) - 1}}
        tried = self._longer(prompts, row)
        try:
            found = self._row(tried)[-len(prompts) :]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # Whatever the model raises at a mask for each pair of tokens.
            reason = f"{type(error).__name__}: {error}"
        else:
            off = max(_difference(found[place], expected) for place, expected in both.items())
            if off <= TOLERANCE:
                self._tried = len(tried.tokens)
                # A prompt by itself has to the last bit what it will have from now on.
                return found if len(prompts) > 1 else self._row(row)
            reason = f"hidden states are off by {off:.2g} of their size"
        self._distrusted = True
        logger.warning(
            "%s does not read questions in one row behind their state as each one alone (%s); each gets a forward of "
            "its own, which is exact and takes more time",
            type(base_model(self.reader.model)).__name__,
            reason,
        )
        return [both[place] if place in both else self._one_by_one(prompt) for place, prompt in enumerate(prompts)]

    def _longer(self, prompts: Sequence[Prompt], row: Row) -> Row:
        """Their row behind a text that makes it twice as long, or as long as rows may be, so that trials are few.

        A row of one question would show nothing: it is what a plain forward reads.
        """
        shared = len(self.begin) if len(row.texts[0][0]) > 1 else 0
        most = self.together if len(row.tokens) < self.together else self.room
        more = max(1, min(2 * len(row.tokens), most) - len(row.tokens))
        return Row.of([Prompt((row.tokens * 2)[: shared + more], []), *prompts], self.begin)

    def _one_by_one(self, prompt: Prompt) -> Vectors:
        prefix = Prefix(self.reader.model, prompt.state, read=False)
        state = self._hidden(lambda: prefix.forward([prompt.state], prefix.cache))
        return _vectors(state, [self._behind(prefix, question) for question in prompt.questions])

    def _behind(self, prefix: Prefix, question: list[int]) -> Tensor:
        cache = copy.deepcopy(prefix.cache)
        return self._hidden(lambda: prefix.forward([question], cache))

    def _hidden(self, forward: Callable[[], Any]) -> Tensor:
        states, _ = hidden_states(self.reader.model, self.layers, forward)
        return _pooled(torch.cat(states))


def _pooled(hidden: Tensor) -> Tensor:
    """Mean and last [layers, 2, hidden] of [layers, tokens, hidden]; float32 on the CPU."""
    hidden = hidden.float().cpu()
    return torch.stack([hidden.mean(1), hidden[:, -1]], 1)


def _difference(one: Vectors, other: Vectors) -> float:
    """Of the vector that is off most."""
    found, expected = (torch.cat([part.flatten(0, -2) for part in vectors]) for vectors in (one, other))
    return float(((found - expected).abs().median(-1).values / expected.abs().median(-1).values).max())


def _vectors(state: Tensor, questions: Sequence[Tensor]) -> Vectors:
    return Vectors(state, torch.stack(list(questions)) if questions else state.new_zeros(0, *state.shape))

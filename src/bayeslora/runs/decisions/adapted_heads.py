"""Heads over a trained adapter as a decision model: what a run with scoring heads answers to requests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, groupby, islice, tee
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bayeslora.adapters.switching import adapters_off
from bayeslora.methods import Method
from bayeslora.prediction.predictive import Predictive
from bayeslora.readouts.questions.reading import QuestionReading
from bayeslora.readouts.row import Row
from bayeslora.readouts.together import attending_by_part
from bayeslora.runs.decisions.adapted import Adapted
from bayeslora.runs.decisions.heads import Heads
from bayeslora.runs.decisions.reading import HiddenReader, Prompt
from bayeslora.runs.decisions.requests import Request, read_codes
from bayeslora.scoring.codes import CodeReader
from bayeslora.scoring.heads import HeadScoring, QuestionBatch
from bayeslora.scoring.rows import RowBatch
from bayeslora.scoring.trunk_cache import TrunkCache
from bayeslora.tasks.decisions import Answer
from bayeslora.tasks.decisions.items import DecisionItem


@dataclass(frozen=True)
class AdaptedHeads(Adapted):
    """Answers by heads of the method that has trained the adapter below them.

    States and their questions share a forward, in each draw, as `HiddenReader` reads them on the frozen model.
    """

    @property
    def scoring(self) -> HeadScoring:
        """What reads the run's items."""
        assert isinstance(self.run.scoring, HeadScoring)
        return self.run.scoring

    @property
    def reading(self) -> QuestionReading:
        """What reads with heads."""
        assert isinstance(self.scoring.reads, QuestionReading)
        return self.scoring.reads

    @property
    def heads(self) -> Heads:
        """Those that answer."""
        return Heads(self.reading.heads[0], self.reading.state_novelty)

    def answers(self, requests: Iterable[Request], hidden: HiddenReader) -> Iterator[tuple[dict[str, Answer], float]]:
        """Answers to the questions of each request that heads know, and the novelty of its state.

        Requests behind each other with the same draws are read together.

        Args:
            requests: With such questions.
            hidden: Says what shares a row.
        """
        for (samples, seed), group in groupby(requests, self.draws):
            own, ahead = tee(group)
            read = self._read(ahead, hidden, samples, seed)
            for request in own:
                yield _answered(request, list(islice(read, len(request.by_head))))

    def _read(
        self, requests: Iterable[Request], hidden: HiddenReader, samples: int, seed: int
    ) -> Iterator[tuple[Predictive, float]]:
        """Of each question of each request the predictive [draws, 1, options], and the novelty of its state."""
        own, ahead = tee(requests)
        items = (item for request in ahead for item in _items(request))
        novelty = self.heads.novelty
        assert novelty is not None
        for prompts in hidden.rows(request.hidden for request in own if request.hidden is not None):
            for forward in self._forwards(prompts, hidden.begin, samples):
                batch, found = self._predicted(forward, list(islice(items, len(forward.places))), samples, seed)
                new = novelty(batch["frozen"][:, 0, -1]).tolist()
                yield from ((found.take(torch.tensor([place])), each) for place, each in enumerate(new))

    def _forwards(self, prompts: Sequence[Prompt], begin: list[int], samples: int) -> Iterator[_Forward]:
        """Prompts in one row; each by itself for a model that would not read that right; and each question by itself
        where a method's posterior or draws are those of single rows."""
        method, model = self.run.config.method, self.run.model
        by_item = method.needs_items and type(method).predict is not Method.predict
        if samples and (by_item or method.draws_depend_on_batch):
            prompts = [Prompt(state, [question]) for state, questions in prompts for question in questions]
        else:
            together = _Forward.together(prompts, begin)
            if RowBatch(together.tensors).to(_device(model)).reads_packed(model):  # type: ignore[attr-defined]
                yield together
                return
        yield from (_Forward.alone(prompt, self.scoring) for prompt in prompts)

    def _predicted(
        self, forward: _Forward, items: Sequence[DecisionItem], samples: int, seed: int
    ) -> tuple[QuestionBatch, Predictive]:
        """The batch of one forward, and the predictive [draws, questions, options]."""
        run = self.run
        # As wide for one question as for all: sums over options have one order whatever else is asked.
        width = max(len(head.question.keys) for head in self.heads.by_signature.values())
        # The layers below the adapters run once, for novelty and for the draws.
        cache = TrunkCache(run.model)
        with attending_by_part(forward.parts), self._keeping(cache):
            batch = self.scoring.of_rows(forward.tensors, forward.places, items, width)
            on_device = batch.to(_device(run.model))
            found = run.config.method.predict(run.model, on_device, samples, seed, cache, run.own_state)
        return batch, found.cpu().tempered(run.temperature)

    @contextmanager
    def _keeping(self, cache: TrunkCache) -> Iterator[None]:
        self.reading.trunk_cache = cache
        try:
            yield
        finally:
            self.reading.trunk_cache = None

    def read(self, reader: CodeReader, request: Request) -> list[Predictive]:
        """Predictives [1, 1, options] of questions that no head knows: by codes, of the model without the adapter."""
        with adapters_off(reader.model):
            return read_codes(reader, request)


class _Forward(NamedTuple):
    """What one forward reads.

    Args:
        parts: What each part of its row sees (`attending_by_part`).
        tensors: Of its rows, as `HeadScoring.of_rows` takes them.
        places: Of each question.
    """

    parts: list[list[slice]]
    tensors: dict[str, Tensor]
    places: list[tuple[int, int, int]]

    @classmethod
    def together(cls, prompts: Sequence[Prompt], begin: list[int]) -> _Forward:
        """Prompts in one row, in which a state is followed by its questions."""
        row = Row.of(prompts, begin)
        starts = accumulate((1 + len(prompt.questions) for prompt in prompts), initial=0)
        places = [
            (0, start, start + 1 + place)
            for start, prompt in zip(starts, prompts, strict=False)
            for place in range(len(prompt.questions))
        ]
        asked = torch.ones(1, len(places), dtype=torch.bool)
        return cls(row.parts, row.tensors() | {"asked": asked}, places)

    @classmethod
    def alone(cls, prompt: Prompt, scoring: HeadScoring) -> _Forward:
        """One prompt, packed as in training."""
        places = [(0, 0, place + 1) for place in range(len(prompt.questions))]
        return cls(Row.of([prompt], []).parts, scoring.packed([prompt]), places)


def _items(request: Request) -> list[DecisionItem]:
    """The questions of a request that heads know."""
    return [
        DecisionItem(name, "state", question.keys, None, state=None, asked=question)
        for name, question in request.by_head.items()
    ]


def _answered(request: Request, read: Sequence[tuple[Predictive, float]]) -> tuple[dict[str, Answer], float]:
    """Answers to these questions, and the novelty of their state, which they have in common."""
    answers, new = {}, read[0][1]
    for (own, _), (name, question) in zip(read, request.by_head.items(), strict=True):
        probabilities = tuple(own.probabilities[0, : len(question.keys)].tolist())
        answers[name] = Answer(question, probabilities, float(own.mutual_information), new, "heads")
    return answers, new


def _device(model: nn.Module) -> torch.device:
    device: torch.device = next(model.parameters()).device
    return device

"""Heads over a trained adapter as a decision model: what a run with scoring heads answers to requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch

from bayeslora.adapters.switching import adapters_off
from bayeslora.methods import Method
from bayeslora.prediction.predictive import Predictive
from bayeslora.readouts.questions.reading import QuestionReading
from bayeslora.readouts.together import attending_by_part
from bayeslora.runs.decisions.adapted import Adapted
from bayeslora.runs.decisions.heads import Heads
from bayeslora.runs.decisions.reading import Prompt
from bayeslora.runs.decisions.requests import Request, read_codes
from bayeslora.scoring.codes import CodeReader
from bayeslora.scoring.heads import HeadScoring, QuestionBatch
from bayeslora.scoring.trunk_cache import TrunkCache
from bayeslora.tasks.decisions import Answer
from bayeslora.tasks.decisions.items import DecisionItem

__all__ = ["AdaptedHeads"]


@dataclass(frozen=True)
class AdaptedHeads(Adapted):
    """Answers by heads of the method that has trained the adapter below them.

    A state is read once for all its questions, in each draw.
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

    def answers(self, request: Request) -> tuple[dict[str, Answer], float]:
        """Answers to the questions of a request that heads know, and the novelty of its state."""
        assert request.hidden is not None
        run, (samples, seed) = self.run, self.draws(request)
        items = [
            DecisionItem(name, "state", question.keys, None, state=None, asked=question)
            for name, question in request.by_head.items()
        ]
        novelty = self.heads.novelty
        assert novelty is not None
        read, new = [], 0.0
        # The layers below the adapters run once, for novelty and for the draws.
        cache = TrunkCache(run.model)
        for prompt, asked in self._rows(request.hidden, items, samples):
            batch, found = self._predicted(prompt, asked, samples, seed, cache)
            read += [found.take(torch.tensor([place])) for place in range(len(asked))]
            new = new if len(read) > len(asked) else float(novelty(batch["frozen"][:1, 0, -1]))
        answers = {}
        for own, (name, question) in zip(read, request.by_head.items(), strict=True):
            probabilities = tuple(own.probabilities[0, : len(question.keys)].tolist())
            answers[name] = Answer(question, probabilities, float(own.mutual_information), new, "heads")
        return answers, new

    def _rows(
        self, prompt: Prompt, items: Sequence[DecisionItem], samples: int
    ) -> list[tuple[Prompt, Sequence[DecisionItem]]]:
        """What is read at a time: all questions in one row, or where a method's posterior or draws are those of single
        rows, each question in a row of its own."""
        method = self.run.config.method
        by_item = method.needs_items and type(method).predict is not Method.predict
        if samples and (by_item or method.draws_depend_on_batch):
            pairs = zip(prompt.questions, items, strict=True)
            return [(Prompt(prompt.state, [question]), [item]) for question, item in pairs]
        return [(prompt, items)]

    def _predicted(
        self, prompt: Prompt, items: Sequence[DecisionItem], samples: int, seed: int, cache: TrunkCache
    ) -> tuple[QuestionBatch, Predictive]:
        """The batch of one row, and the predictive [draws, questions, options]."""
        run = self.run
        # As wide for one question as for all: sums over options have one order whatever else is asked.
        width = max(len(head.question.keys) for head in self.heads.by_signature.values())
        places = [(0, place) for place in range(len(items))]
        with attending_by_part(_parts(prompt)), self._keeping(cache):
            batch = self.scoring.batch([prompt], places, items, width=width)
            on_device = batch.to(next(run.model.parameters()).device)
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


def _parts(prompt: Prompt) -> Sequence[Sequence[slice]]:
    """What the state and each question see of their row."""
    state = slice(0, len(prompt.state))
    ends = accumulate(map(len, prompt.questions), initial=state.stop)
    return [[state], *([state, slice(start, end)] for start, end in pairwise(ends))]

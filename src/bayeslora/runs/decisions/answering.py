"""What answers typed questions about a state: heads, codes, or either over a trained adapter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from itertools import tee
from typing import Any

from bayeslora.methods import Method
from bayeslora.methods.bayesian_head import BayesianHead
from bayeslora.runs.config import TrainConfig
from bayeslora.runs.decisions.adapted import Adapted, AdaptedCodes, check_trains
from bayeslora.runs.decisions.adapted_heads import AdaptedHeads
from bayeslora.runs.decisions.adapted_options import AdaptedOptions
from bayeslora.runs.decisions.calibration import Calibration
from bayeslora.runs.decisions.config import DecisionConfig
from bayeslora.runs.decisions.examples import Examples
from bayeslora.runs.decisions.heads import Heads
from bayeslora.runs.decisions.option_examples import OptionExamples
from bayeslora.runs.decisions.reading import HiddenReader, open_reader
from bayeslora.runs.decisions.requests import Request, as_questions, read_codes, with_read
from bayeslora.runs.run import Run
from bayeslora.scoring.codes import CodeReader, Template
from bayeslora.tasks.decisions import Answer, Question
from bayeslora.tasks.decisions.records import check_state

_ADAPTED: dict[str, type[Adapted]] = {"codes": AdaptedCodes, "heads": AdaptedHeads, "option_texts": AdaptedOptions}
"""By the scoring of the run."""


class AnsweringModel:
    """What a `DecisionModel` answers with, however it was learned; arguments and attributes are described there."""

    def __init__(
        self,
        model: str | DecisionConfig = "offline:smollm2",
        *,
        template: Template | None = None,
        method: Method | None = None,
        train: TrainConfig | None = None,
        **options: Any,
    ):
        config = model if isinstance(model, DecisionConfig) else DecisionConfig(model)
        self.config = replace(config, **options)
        if method is None and self.config.readout == "option_texts":
            method = BayesianHead()
        self.template, self.method, self.train = template or Template(), method, train
        self.adapted: Adapted | None = None
        if method is None:
            self._open()
        else:
            check_trains(method, self.config.readout)
        self.questions: dict[str, Question] = {}
        self.heads = Heads()
        self.calibration: Calibration | None = None
        self.trained_states: frozenset[str] = frozenset()
        self.examples: Examples | OptionExamples | None = None

    @cached_property
    def reader(self) -> CodeReader:
        """What reads prompts; with a method to train the base model is loaded when it is first asked, or trained."""
        if self.adapted is not None:
            return self.adapted.reader()
        return open_reader(self.config, self.template)

    @cached_property
    def hidden(self) -> HiddenReader:
        """What reads hidden states."""
        return HiddenReader(self.reader)

    def _open(self) -> None:
        """Read anew with the base model or what was trained on it."""
        for name in ("reader", "hidden"):
            self.__dict__.pop(name, None)
        _ = self.reader

    def adapt(self, run: Run) -> None:
        """Answer by a trained run."""
        self.adapted = _ADAPTED[run.config.task.scoring](run)
        self.heads = self.adapted.heads
        self._open()

    def decide(
        self,
        state: Any,
        questions: Mapping[str, Any] | None = None,
        *,
        num_samples: int | None = None,
        seed: int | None = None,
    ) -> dict[str, Answer]:
        """Answers by the ids of the questions.

        Args:
            state: A text, an object or an array.
            questions: By id, `Question` objects or maps as in a System One request; default: those it was fitted on.
            num_samples: Posterior draws of an adapter, 0 for its mean; default: as it was trained. Where there is no
                adapter nothing is drawn.
            seed: Of the draws; default: the run's.

        Raises:
            QuestionError: The state is empty or a question is wrong.
            TooLongError: They do not fit into what the model reads.
            ValueError: A question has more options than there are codes, or there cannot be so many draws.
        """
        return next(self.answers([self.request(state, questions, num_samples, seed)]))

    def request(
        self,
        state: Any,
        questions: Mapping[str, Any] | None = None,
        num_samples: int | None = None,
        seed: int | None = None,
    ) -> Request:
        """A state and questions in tokens, for `answers`; arguments and errors as of `decide`."""
        check_state(state)
        asked = dict(self.questions) if questions is None else as_questions(questions)
        if not asked:
            raise ValueError("there are no questions: give some, or fit the model on records that have them.")
        tokens = self.reader.state_tokens(state)
        by_head = {name: question for name, question in asked.items() if self.heads.knows(question)}
        reads = bool(by_head) if isinstance(self.adapted, AdaptedHeads) else self.heads.novelty is not None
        hidden = self.hidden.prompt(tokens, self.heads.fitted(by_head)) if reads else None
        by_code = {name: self._prompts(tokens, each) for name, each in asked.items() if name not in by_head}
        return Request(asked, tokens, by_head, hidden, by_code, num_samples, seed, state)

    def _prompts(self, state: list[int], question: Question) -> list[list[int]]:
        if self.adapted is None:
            return self.reader.prompts(state, question)
        return self.adapted.prompts(self.reader, state, question)

    def answers(self, requests: Iterable[Request]) -> Iterator[dict[str, Answer]]:
        """Answers to each request by the ids of its questions, the same whatever stands beside it.

        What heads read is read together; requests are taken as they are needed.
        """
        return (self._answers(request, *(read or ({}, None))) for request, read in with_read(requests, self._by_head))

    def _by_head(self, requests: Iterable[Request]) -> Iterator[tuple[dict[str, Answer], float | None]]:
        """What heads answer, and the novelty of the state."""
        if isinstance(self.adapted, AdaptedHeads):
            yield from self.adapted.answers(requests, self.hidden)
            return
        own, ahead = tee(requests)
        read = self.hidden.each(request.hidden for request in ahead if request.hidden is not None)
        for request, vectors in zip(own, read, strict=True):
            novelty = self.heads.novelty_of(vectors)
            yield self.heads.answers(vectors, request.by_head, novelty), novelty

    def _answers(self, request: Request, found: dict[str, Answer], novelty: float | None) -> dict[str, Answer]:
        if request.by_code:
            read = read_codes if self.adapted is None else self.adapted.read
            readout = "codes" if self.adapted is None else self.adapted.readout
            for name, predictive in zip(request.by_code, read(self.reader, request), strict=True):
                probabilities = tuple(predictive.probabilities[0].tolist())
                information = float(predictive.mutual_information[0])
                found[name] = Answer(request.questions[name], probabilities, information, novelty, readout)
        answers = {name: found[name] for name in request.questions}
        return answers if self.calibration is None else self.calibration.apply(answers)

"""A decision model: fitted on records, asked typed questions about a state, saved as a folder."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import tee
from pathlib import Path
from typing import Any

from bayeslora.methods import Method
from bayeslora.runs.config import TrainConfig
from bayeslora.runs.decisions.adapted import AdaptedCodes, check_trains, trained_on
from bayeslora.runs.decisions.adapted_heads import AdaptedHeads
from bayeslora.runs.decisions.calibration import Calibration, Labelled, Signal, calibrated
from bayeslora.runs.decisions.config import DecisionConfig
from bayeslora.runs.decisions.drift import DRIFTED, Drift, drift
from bayeslora.runs.decisions.examples import Examples, counts_of_labels, held, state_novelty
from bayeslora.runs.decisions.heads import Heads, check_enough
from bayeslora.runs.decisions.reading import HiddenReader, open_reader
from bayeslora.runs.decisions.requests import Request, as_questions, read_codes, with_read
from bayeslora.runs.run import Run
from bayeslora.scoring.codes import CodeReader, Template
from bayeslora.tasks.decisions import Answer, Question, Record, parse_questions, read_records
from bayeslora.tasks.decisions.items import DecisionItem, items_of, without_states
from bayeslora.tasks.decisions.records import check_state, key_of

__all__ = ["DecisionModel"]

logger = logging.getLogger("bayeslora")

FEWEST = 25
"""Labels from which on a question gets a head of its own by default."""


class DecisionModel:
    """Answers typed questions about a state with probabilities that know what they do not know.

    Args:
        model: Hub id, local folder, or "offline:smollm2"; or a whole `DecisionConfig`.
        template: The prompt.
        method: Of `bayeslora.methods`, with readout "codes" or "heads": what `fit` trains below them.
        train: Options of that training (`bayeslora.runs.config.TrainConfig`).
        **options: Fields of `DecisionConfig`.

    Attributes:
        adapted: What answers over a trained adapter; None where none was trained.
        questions: Those that it was fitted on, by their ids.
        trained_states: Digests of the states that it was fitted on.
        examples: Features and labels that it was fitted on, for `extend`; None where it has none.
    """

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
        self.template, self.method, self.train = template or Template(), method, train
        self.adapted: AdaptedCodes | AdaptedHeads | None = None
        if method is None:
            self._open()
        else:
            check_trains(method, self.config.readout)
        self.questions: dict[str, Question] = {}
        self.heads = Heads()
        self.calibration: Calibration | None = None
        self.trained_states: frozenset[str] = frozenset()
        self.examples: Examples | None = None

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

    def fit(
        self,
        records: str | Path | Sequence[Record],
        questions: Mapping[str, Any] | None = None,
        *,
        progress: bool = True,
    ) -> DecisionModel:
        """Learn from records; what was learned before is forgotten, a calibration too.

        With a method it trains an adapter below codes on all of them, their options in another order each epoch.

        Args:
            records: A file of them, or what `read_records` gave.
            questions: Those of records that have only a state and labels.
            progress: Whether a bar shows how many states are read.

        Raises:
            TaskError: A record is wrong.
            ValueError: There is too little to learn from.
            TooLongError: A state does not fit; nothing is cut.
        """
        name = "records"
        if isinstance(records, str | Path):
            shared = None if questions is None else parse_questions(questions)
            name, records = str(records), read_records(records, shared, require_labels=True)
        if self.method is not None:
            items = items_of(records)
            self.take(trained_on(items, self.config, self.method, self.train, self.template, name), items, progress)
            return self
        self.questions = self._learn(records, Examples(), progress)
        return self

    def take(self, run: Run, items: Sequence[DecisionItem], progress: bool = True) -> None:
        """Answer by a run that was trained on these items, in the place of what was learned before."""
        self.adapt(run)
        states = {key_of(item.state): item.state for item in items}
        if self.heads.novelty is None:
            self.heads = Heads({}, state_novelty(self.hidden, [*states.values()], progress=progress))
        self.trained_states = frozenset(states)
        self.questions = {item.name: item.asked for item in items}
        self.examples, self.calibration = None, None

    def adapt(self, run: Run) -> None:
        """Answer by a trained run."""
        self.adapted = AdaptedHeads(run) if run.config.task.scoring == "heads" else AdaptedCodes(run)
        self.heads = self.adapted.heads
        self._open()

    def extend(self, records: str | Path | Sequence[Record], *, progress: bool = True) -> DecisionModel:
        """Learn from more records, as if `fit` had been given them behind those it was given; only these are read.

        A calibration is forgotten: it was of the heads before.

        Args:
            records: A file of them, or what `read_records` gave; of one with only a state and labels, the model's own
                questions count.
            progress: Whether a bar shows how many states are read.

        Raises:
            TaskError: A record is wrong.
            ValueError: The model was not fitted, or does not hold what it was fitted on.
            TooLongError: A state does not fit; nothing is cut.
        """
        before = held(self.examples)
        if isinstance(records, str | Path):
            records = read_records(records, self.questions or None, require_labels=True)
        known = sum(record.state_key in self.trained_states for record in records)
        logger.info(
            "%d records of before and %d new ones, of which %d have a state of before",
            before.records,
            len(records),
            known,
        )
        if self.calibration is not None:
            logger.warning("the calibration was of the heads of before, and is left out: calibrate again")
        self.questions = self.questions | self._learn(records, before, progress)
        return self

    def _learn(self, records: Sequence[Record], before: Examples, progress: bool) -> dict[str, Question]:
        """Fit heads; what the model has learned before is replaced at the end. Gives the questions of the records."""
        if self.config.readout == "codes":
            raise ValueError(
                "readout='codes' without a method learns nothing: give one, such as method=bayeslora.methods.Lora(), "
                "take readout='auto' or 'heads', or decide without fit."
            )
        fewest = FEWEST if self.config.readout == "auto" else 2
        counts = Counter({key: len(labels.states) for key, labels in before.labels.items()})
        counts.update(counts_of_labels(records))
        check_enough(counts, fewest)
        examples = before.joined(Examples.of(self.hidden, records, progress=progress))
        self.heads = Heads.fit(examples, self.config, fewest=fewest)
        known = self.trained_states if before.records else frozenset[str]()
        self.trained_states = known | {record.state_key for record in records}
        self.examples, self.calibration = examples, None
        return {name: question for record in records for name, question in record.questions.items()}

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
        by_code = {name: self.reader.prompts(tokens, each) for name, each in asked.items() if name not in by_head}
        return Request(asked, tokens, by_head, hidden, by_code, num_samples, seed)

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
            for name, predictive in zip(request.by_code, read(self.reader, request), strict=True):
                probabilities = tuple(predictive.probabilities[0].tolist())
                information = float(predictive.mutual_information[0])
                found[name] = Answer(request.questions[name], probabilities, information, novelty)
        answers = {name: found[name] for name in request.questions}
        return answers if self.calibration is None else self.calibration.apply(answers)

    def calibrate(
        self,
        records: str | Path | Sequence[Record],
        *,
        alpha: float | None = None,
        delta: float = 0.1,
        signal: Signal = "confidence",
        coverage: float | None = None,
    ) -> DecisionModel:
        """Learn temperatures and, with an alpha, thresholds from labelled records that `fit` has not seen.

        Records whose state it has seen are left out with a word: of these it knows the answers.

        Args:
            records: A file of them, or what `read_records` gave.
            alpha: The share of errors that answers with the action "automate" may have.
            delta: Probability with which that promise may fail, for each question.
            signal: What the threshold is on: "confidence", "entropy" or "novelty".
            coverage: Share of states whose right option the answers' sets shall hold, or None for no sets.

        Raises:
            TaskError: A record is wrong.
            ValueError: There are too few labels, or an argument is out of its range.
        """
        if isinstance(records, str | Path):
            records = read_records(records, self.questions or None, require_labels=True)
        records = without_states(records, self.trained_states, "calibration")
        self.calibration = None
        rows = list(self.labelled(records))
        self.calibration = calibrated(rows, alpha=alpha, delta=delta, signal=signal, coverage=coverage)
        shift = self.drift({row.state: row.answer.novelty for row in rows})
        if shift is not None and shift.p < DRIFTED:
            logger.warning("the labelled states are not like those of the training: %s", shift)
        return self

    def drift(self, novelties: Mapping[str, float | None]) -> Drift | None:
        """Whether states that it was not fitted on lie farther out than those it was fitted on.

        Args:
            novelties: By distinct states: `Answer.novelty`, the same for each question about a state.

        Returns:
            The test (`bayeslora.runs.decisions.drift`), or None where nothing was fitted.
        """
        if self.heads.novelty is None:
            return None
        return drift([value for value in novelties.values() if value is not None], len(self.heads.novelty.reference))

    def labelled(self, records: Sequence[Record]) -> Iterator[Labelled]:
        """Answers to the questions of records whose right answers are known, beside these."""
        labelled = [record for record in records if record.targets]
        requests = (self.request(one.state, {name: one.questions[name] for name in one.targets}) for one in labelled)
        for record, answers in zip(labelled, self.answers(requests), strict=True):
            yield from (Labelled(answer, record.targets[name], record.state_key) for name, answer in answers.items())

    def save(self, folder: str | Path, *, overwrite: bool = False, metrics: Mapping[str, Any] | None = None) -> None:
        """Write the model's folder: `decision.json`, and what was learned. The base model is named, not copied.

        Args:
            folder: Where.
            overwrite: Replace what is there.
            metrics: Are written to metrics.json.

        Raises:
            FileExistsError: There is something at `folder`, and not `overwrite`.
        """
        from bayeslora.runs.decisions.files import save_decision_model

        save_decision_model(self, Path(folder), overwrite=overwrite, metrics=metrics)

    @classmethod
    def load(cls, folder: str | Path, *, device: str | None = None) -> DecisionModel:
        """A saved one.

        Raises:
            FileNotFoundError: There is none in `folder`.
            ValueError: A file of it is damaged.
        """
        from bayeslora.runs.decisions.files import load_decision_model

        return load_decision_model(Path(folder), device)

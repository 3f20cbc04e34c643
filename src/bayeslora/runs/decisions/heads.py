"""The heads of a fixed set of questions, and how new a state is to them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bayeslora.readouts.novelty import Novelty
from bayeslora.runs.decisions.config import DecisionConfig
from bayeslora.runs.decisions.head import QuestionHead
from bayeslora.runs.decisions.reading import HiddenReader, Vectors
from bayeslora.system.console import track
from bayeslora.system.threads import threads_for
from bayeslora.tasks.decisions import Answer, Question, Record

__all__ = ["Heads", "signature"]

logger = logging.getLogger("bayeslora")


@dataclass
class Heads:
    """Fitted heads by the `signature` of their question; without any it knows nothing.

    Args:
        by_signature: The heads.
        novelty: Of states, against those of the training records.
    """

    by_signature: dict[tuple[Any, ...], QuestionHead] = field(default_factory=dict)
    novelty: Novelty | None = None

    @classmethod
    def fit(
        cls, hidden: HiddenReader, records: Sequence[Record], config: DecisionConfig, *, fewest: int, progress: bool
    ) -> Heads:
        """A head for each question with at least `fewest` labels; a word in the log for each other one.

        Raises:
            ValueError: No question has so many.
        """
        labelled = _by_question(records)
        enough = {key: rows for key, rows in labelled.items() if len(rows) >= fewest}
        _say_left_out(labelled, enough, fewest)
        if not enough:
            most = max(map(len, labelled.values()), default=0)
            raise ValueError(
                f"expected a question with at least {fewest} labels to fit a head on, but the most that one has is "
                f"{most}; label more records, set readout='heads' for fewer labels, or decide zero-shot without fit."
            )
        vectors = _read(hidden, records, set(enough), progress)
        heads = {}
        for key, rows in enough.items():
            features = torch.stack([_features(vectors[index], key) for index, _ in rows])
            question = records[rows[0][0]].questions[rows[0][1]]
            targets = torch.stack([_target(records[index], name, question) for index, name in rows])
            states = [records[index].state_key for index, _ in rows]
            weights = torch.tensor([records[index].weight for index, _ in rows], dtype=torch.float64)
            with threads_for(len(rows)):
                heads[key] = QuestionHead.fit(
                    question, features, targets, states, weights, noisy=config.label_noise, seed=config.seed
                )
        unique = {records[index].state_key: one.vectors.state[-1] for index, one in vectors.items()}
        return cls(heads, Novelty.of(torch.stack(list(unique.values()))))

    def knows(self, question: Question) -> bool:
        """Whether there is a head for a question, whatever its id and the order of its options."""
        return signature(question) in self.by_signature

    def decide(self, hidden: HiddenReader, state: Any, questions: Mapping[str, Question]) -> dict[str, Answer]:
        """Answers to questions that it knows."""
        heads = {name: self.by_signature[signature(question)] for name, question in questions.items()}
        vectors = hidden(state, [head.question for head in heads.values()])
        novelty = self._novelty(vectors.state)
        return {
            name: _answer(head, questions[name], _stacked(vectors, place).unsqueeze(0), novelty)
            for place, (name, head) in enumerate(heads.items())
        }

    def novelty_of(self, hidden: HiddenReader, state: Any) -> float | None:
        """Of a state, 0 to 1; None where nothing was fitted."""
        return None if self.novelty is None else self._novelty(hidden(state, []).state)

    def _novelty(self, state: Tensor) -> float:
        assert self.novelty is not None
        return float(self.novelty(state[-1].unsqueeze(0)))


def signature(question: Question) -> tuple[Any, ...]:
    """What makes two questions the same: all but their ids and, of a choice, the order of its options."""
    options = tuple((option.key, option.text) for option in question.options)
    if question.kind == "choice":
        options = tuple(sorted(options, key=lambda option: option[0]))
    return (question.kind, question.instructions, options)


@dataclass(frozen=True)
class _Read:
    vectors: Vectors
    places: dict[tuple[Any, ...], int]


def _by_question(records: Sequence[Record]) -> dict[tuple[Any, ...], list[tuple[int, str]]]:
    """Which records, and by which id there, have a label of each question."""
    found: dict[tuple[Any, ...], list[tuple[int, str]]] = {}
    for index, record in enumerate(records):
        for name in record.targets:
            found.setdefault(signature(record.questions[name]), []).append((index, name))
    return found


def _say_left_out(labelled: Mapping[tuple[Any, ...], Any], enough: Mapping[tuple[Any, ...], Any], fewest: int) -> None:
    for key, rows in labelled.items():
        if enough and key not in enough:
            logger.warning(
                "the question %r has %d labels, fewer than %d: no head is fitted, codes will answer it",
                key[1],
                len(rows),
                fewest,
            )


def _read(
    hidden: HiddenReader, records: Sequence[Record], wanted: set[tuple[Any, ...]], progress: bool
) -> dict[int, _Read]:
    """Vectors of each record that has a label of a wanted question; equal ones are read once."""
    found: dict[int, _Read] = {}
    known: dict[Any, _Read] = {}
    for index, record in enumerate(track(records, "read", "states", show=progress)):
        asked = {signature(record.questions[name]): record.questions[name] for name in record.targets}
        asked = {key: question for key, question in asked.items() if key in wanted}
        if asked:
            same = (record.state_key, *asked)
            if same not in known:
                places = {key: place for place, key in enumerate(asked)}
                known[same] = _Read(hidden(record.state, list(asked.values())), places)
            found[index] = known[same]
    return found


def _features(read: _Read, key: tuple[Any, ...]) -> Tensor:
    return _stacked(read.vectors, read.places[key])


def _stacked(vectors: Vectors, place: int) -> Tensor:
    """[poolings, layers, hidden]: the state's mean, the question's mean, and its last token."""
    return torch.cat([vectors.state.unsqueeze(0), vectors.questions[place].transpose(0, 1)])


def _target(record: Record, name: str, question: Question) -> Tensor:
    """Probabilities in the order of `question`, whose options the record may have in another one."""
    by_key = dict(zip(record.questions[name].keys, record.targets[name], strict=True))
    return torch.tensor([by_key[key] for key in question.keys], dtype=torch.float64)


def _answer(head: QuestionHead, question: Question, features: Tensor, novelty: float) -> Answer:
    predictive = head.predict(features)
    by_key = dict(zip(head.question.keys, predictive.probabilities[0].tolist(), strict=True))
    information = float(predictive.mutual_information[0])
    return Answer(question, tuple(by_key[key] for key in question.keys), information, novelty, "heads")

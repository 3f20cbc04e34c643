"""The heads of a fixed set of questions, and how new a state is to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from bayeslora.readouts.novelty import Novelty
from bayeslora.readouts.questions.head import QuestionHead
from bayeslora.runs.decisions.config import DecisionConfig
from bayeslora.runs.decisions.examples import Examples, novelty_of, stacked
from bayeslora.runs.decisions.reading import Vectors
from bayeslora.system.devices import threads_for
from bayeslora.system.log import logger
from bayeslora.tasks.decisions import Answer, Question
from bayeslora.tasks.decisions.questions import signature


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
    def fit(cls, examples: Examples, config: DecisionConfig, *, fewest: int) -> Heads:
        """A head for each question with at least `fewest` labels."""
        heads = {}
        for key, labels in examples.labels.items():
            if len(labels.states) >= fewest:
                features = examples.features(labels)
                with threads_for(len(features)):
                    heads[key] = QuestionHead.fit(
                        labels.question,
                        features,
                        labels.targets,
                        labels.states,
                        labels.weights,
                        noisy=config.label_noise,
                    )
        return cls(heads, novelty_of({key: state[-1, 0] for key, state in examples.states.items()}))

    def knows(self, question: Question) -> bool:
        """Whether there is a head for a question, whatever its id and the order of its options."""
        return signature(question) in self.by_signature

    def fitted(self, questions: Mapping[str, Question]) -> list[Question]:
        """Questions that it knows, as they stood where they were fitted, which is how they are read."""
        return [self.by_signature[signature(question)].question for question in questions.values()]

    def answers(self, vectors: Vectors, questions: Mapping[str, Question], novelty: float | None) -> dict[str, Answer]:
        """Answers to questions that it knows.

        Args:
            vectors: Of the state and the questions as `fitted` gives them.
            questions: By id.
            novelty: Of the state, which `novelty_of` gives.
        """
        heads = {name: self.by_signature[signature(question)] for name, question in questions.items()}
        return {
            name: _answer(head, questions[name], stacked(vectors, place).unsqueeze(0), novelty)
            for place, (name, head) in enumerate(heads.items())
        }

    def novelty_of(self, vectors: Vectors) -> float | None:
        """Of a state, 0 to 1; None where nothing was fitted."""
        return None if self.novelty is None else float(self.novelty(vectors.state[-1, :1]))


def check_enough(labels: Mapping[tuple[Any, ...], int], fewest: int) -> None:
    """Whether a question has labels enough for a head; a word in the log for each other one.

    Args:
        labels: How many each question has, by its `signature`.
        fewest: For a head.

    Raises:
        ValueError: No question has so many.
    """
    most = max(labels.values(), default=0)
    if most < fewest:
        raise ValueError(
            f"expected a question with at least {fewest} labels to fit a head on, but the most that one has is "
            f"{most}; label more records, fit one head that questions share (readout='option_texts', --task.scoring "
            "option_texts --method BayesianHead), fit heads to fewer labels (readout='heads' of DecisionModel), or "
            "decide zero-shot without fit."
        )
    for key, count in labels.items():
        if count < fewest:
            logger.warning(
                "the question %r has %d labels, fewer than %d: no head is fitted, codes will answer it",
                key[1],
                count,
                fewest,
            )


def _answer(head: QuestionHead, question: Question, features: Tensor, novelty: float | None) -> Answer:
    predictive = head.predict(features)
    by_key = dict(zip(head.question.keys, predictive.probabilities[0].tolist(), strict=True))
    information = float(predictive.mutual_information[0])
    return Answer(question, tuple(by_key[key] for key in question.keys), information, novelty, "heads")

"""The answer to a typed question: probabilities of its options, and how far they are to be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bayeslora.tasks.decisions.labels import hard_label
from bayeslora.tasks.decisions.questions import Question


@dataclass(frozen=True)
class Answer:
    """What a decision model says.

    Args:
        question: What was asked.
        probabilities: Of the options, in their order; their sum is 1.
        mutual_information: How much of the entropy the posterior over the model explains, nats; 0 without a posterior.
        novelty: How far the state lies from the training states, as the share of these that lie nearer to each other, 0
            to 1; None where nothing was trained.
        readout: How it was read: "codes", "heads" or "option_texts".
        action: "automate" or "escalate" by a certified threshold; None where none was calibrated.
        options_in_set: Indices of a conformal set; None where none was calibrated.
    """

    question: Question
    probabilities: tuple[float, ...]
    mutual_information: float = 0.0
    novelty: float | None = None
    readout: str = "codes"
    action: str | None = None
    options_in_set: tuple[int, ...] | None = None

    @property
    def best(self) -> int:
        """Index of the most probable option; of equals the first."""
        return hard_label(self.probabilities)

    @property
    def key(self) -> str:
        """Name of the most probable option."""
        return self.question.keys[self.best]

    @property
    def confidence(self) -> float:
        """As the question's type defines it, 0 to 1."""
        return self.question.confidence(self.probabilities)

    @property
    def entropy(self) -> float:
        """Of the probabilities, nats."""
        return -math.fsum(p * math.log(p) for p in self.probabilities if p > 0)

    @property
    def level(self) -> float:
        """Of a score: the mean of the levels' indices."""
        return math.fsum(index * p for index, p in enumerate(self.probabilities))

    def to_dict(self, extensions: bool = True) -> dict[str, Any]:
        """As a System One answer.

        Args:
            extensions: Whether fields beginning with `x_` are added.
        """
        return self._standard() | (self.extensions() if extensions else {})

    def extensions(self) -> dict[str, Any]:
        """`x_uncertainty` (entropy and mutual information, nats), `x_novelty`, `x_set`, `x_action`, `x_readout`."""
        fields: dict[str, Any] = {
            "x_uncertainty": {"entropy": self.entropy, "mutual_information": self.mutual_information},
            "x_readout": self.readout,
        }
        if self.novelty is not None:
            fields["x_novelty"] = self.novelty
        if self.options_in_set is not None:
            fields["x_set"] = [self.question.keys[index] for index in self.options_in_set]
        if self.action is not None:
            fields["x_action"] = self.action
        return fields

    def _standard(self) -> dict[str, Any]:
        kind, keyed = self.question.kind, self.by_key(self.probabilities)
        if kind == "noul":
            return {"type": kind, "noul": keyed["true"]}
        if kind == "choice":
            return {"type": kind, "choice": self.key, "probabilities": keyed, "confidence": self.confidence}
        legend = {option.key: option.text for option in self.question.options}
        return {
            "type": kind,
            "score": self.level,
            "legend": legend,
            "probabilities": keyed,
            "confidence": self.confidence,
        }

    def by_key(self, values: Sequence[float]) -> dict[str, float]:
        """Values in the order of the options by the options' names."""
        return dict(zip(self.question.keys, values, strict=True))

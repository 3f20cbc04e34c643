"""What labelled records say of a decision model: temperatures, and thresholds above which it may act by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from scipy.optimize import minimize

from bayeslora.metrics.inputs import share_of
from bayeslora.options.ranges import Positive, Share, check_value
from bayeslora.prediction.certified import Certified, certified_threshold, fewest_units
from bayeslora.prediction.conformal import check_coverage
from bayeslora.prediction.temperature import PRIOR_STD
from bayeslora.runs.decisions.sets import SetSizes, options_in_set, set_threshold
from bayeslora.system.log import logger
from bayeslora.tasks.decisions import Answer, Question, hard_label
from bayeslora.tasks.decisions.questions import signature

Stored = TypeVar("Stored")
Signal = Literal["confidence", "entropy", "novelty"]
_SPREAD = 0.3
"""Standard deviation of a group's log T around the common one."""
_WIDEST = 5.0

OTHERS = "*"
"""Of all questions that have no threshold of their own."""

_STORED: dict[str, Any] = {
    "temperatures": dict[str, Positive],
    "common": Positive,
    "alpha": Share | None,
    "delta": Share | None,
}

DEFINITIONS = {
    "noul": "|2 P(true) - 1|",
    "choice": "(max p - 1/n) / (1 - 1/n)",
    "score": "max(0, 1 - sum_i p_i |i - mode| / D), D the same sum for uniform p around the middle",
    "signal": "of the probabilities before the temperature",
}


@dataclass(frozen=True)
class Labelled:
    """An answer of the model, and the right one.

    Args:
        answer: Without calibration.
        target: Probabilities of the options.
        state: What answers about the same state share.
    """

    answer: Answer
    target: tuple[float, ...]
    state: str

    @property
    def wrong(self) -> bool:
        """Whether the most probable option is another."""
        return self.answer.best != hard_label(self.target)


@dataclass(frozen=True)
class Policy:
    """When a question's answers may be acted on.

    Args:
        question: Its text, for people.
        signal: What is compared with the threshold.
        certified: The threshold, and what it was certified on.
    """

    question: str
    signal: Signal
    certified: Certified


@dataclass(frozen=True)
class Calibration:
    """What is stored beside the model.

    Args:
        temperatures: By the type of a question and its number of options, such as "choice:6".
        common: Temperature of types and numbers that no label was seen of.
        policies: By `name_of` the question; one for all others, by `OTHERS`, where questions vary.
        alpha: Share of errors that is promised.
        delta: Probability with which the promise may fail, for each question.
        coverage: Share of states whose right option is in the answers' sets, or None for no sets.
        sets: `set_threshold` of each question, named as the policies are.
        set_sizes: Of the labelled answers; None for no sets, and in calibrations of earlier versions.
    """

    temperatures: dict[str, float] = field(default_factory=dict)
    common: float = 1.0
    policies: dict[str, Policy] = field(default_factory=dict)
    alpha: float | None = None
    delta: float | None = None
    coverage: float | None = None
    sets: dict[str, float | None] = field(default_factory=dict)
    set_sizes: SetSizes | None = None

    def apply(self, answers: Mapping[str, Answer]) -> dict[str, Answer]:
        """Answers with calibrated probabilities, and with an action where a threshold was asked for."""
        return {name: self._one(answer) for name, answer in answers.items()}

    def _one(self, answer: Answer) -> Answer:
        policy = _of_question(self.policies, answer.question)
        action = answer.action
        if self.alpha is not None:
            action = "escalate" if policy is None else _action(answer, policy)
        chosen = answer.options_in_set
        if self.coverage is not None:
            chosen = options_in_set(answer, _of_question(self.sets, answer.question))
        temperature = self.temperatures.get(group_of(answer.question), self.common)
        scaled = np.log(np.maximum(answer.probabilities, 1e-12)) / temperature
        scaled = np.exp(scaled - scaled.max())
        probabilities = tuple((scaled / scaled.sum()).tolist())
        return replace(answer, probabilities=probabilities, action=action, options_in_set=chosen)

    def to_dict(self) -> dict[str, Any]:
        """As it is stored, with what confidence means."""
        return asdict(self) | {"confidence": DEFINITIONS}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Calibration:
        """A stored one.

        Raises:
            AttributeError, KeyError, TypeError: It is of another form.
            ValueError: A number is out of its range.
        """
        policies = {
            name: Policy(one["question"], one["signal"], Certified(**one["certified"]))
            for name, one in content["policies"].items()
        }
        for name, kind in _STORED.items():
            check_value(content[name], kind, name)
        for policy in policies.values():
            check_value(policy.signal, Signal, "signal")
            check_value(policy.certified.threshold, float | None, "threshold")
        # Calibrations of before have no sets.
        coverage, sets = content.get("coverage"), content.get("sets") or {}
        check_value(coverage, Share | None, "coverage")
        check_value(sets, dict[str, Share | None], "sets")
        stored = {name: content[name] for name in _STORED}
        return cls(policies=policies, coverage=coverage, sets=sets, set_sizes=_stored_sizes(content), **stored)


def calibrated(
    labelled: Sequence[Labelled],
    *,
    alpha: float | None,
    delta: float,
    signal: Signal = "confidence",
    coverage: float | None = None,
) -> Calibration:
    """Temperatures of all labels, and a certified threshold of each question; one for all where they vary.

    Thresholds look at probabilities before the temperature, so that no label is used twice for one guarantee.

    Args:
        labelled: Answers of the uncalibrated model to questions that it was not trained on.
        alpha: Share of errors to promise; None: no thresholds.
        delta: Probability with which the promise may fail, for each question.
        signal: What the threshold is on.
        coverage: Share of states whose right option sets shall hold, or None for no sets.

    Raises:
        ValueError: There is no label, an argument is out of its range, or no question has labels enough.
    """
    if signal not in get_args(Signal):
        raise ValueError(f"signal must be one of {', '.join(get_args(Signal))}, got {signal!r}.")
    if not labelled:
        raise ValueError("calibration needs labelled questions, got none; label some that fit has not seen.")
    sets = {} if coverage is None else _sets(labelled, coverage)
    sizes = None if coverage is None else _sizes(labelled, sets)
    common, temperatures = fit_temperatures(labelled)
    if alpha is None:
        return Calibration(temperatures, common, coverage=coverage, sets=sets, set_sizes=sizes)
    policies: dict[str, Policy] = {}
    refused: list[tuple[str, ValueError]] = []
    for name, rows in _by_question(labelled, fewest_units(alpha, delta)).items():
        try:
            certified = certified_threshold(
                [score_of(row.answer, signal) for row in rows],
                [row.wrong for row in rows],
                [row.state for row in rows],
                alpha,
                delta,
            )
        except ValueError as error:
            refused.append((_text_of(name, rows), error))
            continue
        policies[name] = Policy(_text_of(name, rows), signal, certified)
    if not policies:
        raise refused[0][1]
    for text, reason in refused:
        logger.warning("%s: its answers are all escalated: %s", text, reason)
    return Calibration(temperatures, common, policies, alpha, delta, coverage, sets, sizes)


def fit_temperatures(labelled: Sequence[Labelled]) -> tuple[float, dict[str, float]]:
    """A common temperature, and one for each type and number of options that is shrunk to it.

    The largest posterior: log-likelihood of the labels (soft ones in expectation), log T_common ~ N(0, 0.7^2), and
    log T_group ~ N(log T_common, 0.3^2).
    """
    groups = _grouped(labelled, group_of)
    tables = [
        (
            np.log(np.maximum([row.answer.probabilities for row in rows], 1e-12)),
            np.array([row.target for row in rows]),
        )
        for rows in groups.values()
    ]

    def loss(point: np.ndarray) -> float:
        total = (point[0] / PRIOR_STD) ** 2 / 2 + float((((point[1:] - point[0]) / _SPREAD) ** 2).sum()) / 2
        for log_temperature, (scores, targets) in zip(point[1:], tables, strict=True):
            scaled = scores / math.exp(log_temperature)
            peak = scaled.max(1, keepdims=True)
            normal = peak + np.log(np.exp(scaled - peak).sum(1, keepdims=True))
            total -= float((targets * (scaled - normal)).sum())
        return total

    start = np.zeros(len(tables) + 1)
    found = minimize(loss, start, method="L-BFGS-B", bounds=[(-_WIDEST, _WIDEST)] * len(start)).x
    return math.exp(found[0]), {name: math.exp(value) for name, value in zip(groups, found[1:], strict=True)}


def group_of(question: Question) -> str:
    """Type and number of options."""
    return f"{question.kind}:{len(question.options)}"


def name_of(question: Question) -> str:
    """The same for the same question, whatever its id and the order of its options."""
    return repr(signature(question))


def _of_question(table: Mapping[str, Stored], question: Question) -> Stored | None:
    """What is stored for a question, or for all that have nothing of their own."""
    return table.get(name_of(question), table.get(OTHERS))


def score_of(answer: Answer, signal: Signal) -> float:
    """How sure an answer is by a signal; higher is surer.

    Raises:
        ValueError: The model has no novelty, as nothing was fitted.
    """
    if signal == "novelty":
        if answer.novelty is None:
            raise ValueError("a zero-shot model knows no novelty; use signal='confidence', or fit it first.")
        return -answer.novelty
    return answer.confidence if signal == "confidence" else -answer.entropy


def _action(answer: Answer, policy: Policy) -> str:
    threshold = policy.certified.threshold
    sure = threshold is not None and score_of(answer, policy.signal) >= threshold
    return "automate" if sure else "escalate"


def _sets(labelled: Sequence[Labelled], coverage: float) -> dict[str, float | None]:
    """Of each question, from probabilities before the temperature, and a word where its states are too few."""
    check_coverage(coverage)
    found: dict[str, float | None] = {}
    for name, rows in _by_question(labelled, _fewest_states(coverage, len(labelled))).items():
        right = [row.answer.probabilities[hard_label(row.target)] for row in rows]
        found[name] = set_threshold(right, [row.state for row in rows], coverage)
        if found[name] is None:
            said = "%s: there are too few states for sets of %g, and each is all options"
            logger.warning(said, _text_of(name, rows), coverage)
    return found


def _sizes(labelled: Sequence[Labelled], sets: Mapping[str, float | None]) -> SetSizes:
    chosen = [options_in_set(row.answer, _of_question(sets, row.answer.question)) for row in labelled]
    return SetSizes.of([len(options) for options in chosen])


def _stored_sizes(content: Mapping[str, Any]) -> SetSizes | None:
    stored = content.get("set_sizes")
    if stored is None:
        return None
    check_value(stored["mean"], Positive, "set_sizes.mean")
    check_value(stored["single"], Share, "set_sizes.single")
    return SetSizes(**stored)


def _fewest_states(coverage: float, at_most: int) -> int:
    """That sets of this coverage take, or one more than there can be."""
    return next((count for count in range(1, at_most + 1) if share_of(count + 1, coverage) <= count), at_most + 1)


def _grouped(labelled: Sequence[Labelled], by: Callable[[Question], str]) -> dict[str, list[Labelled]]:
    found: dict[str, list[Labelled]] = {}
    for row in labelled:
        found.setdefault(by(row.answer.question), []).append(row)
    return found


def _by_question(labelled: Sequence[Labelled], needed: int) -> dict[str, list[Labelled]]:
    """Rows by question; those of questions that vary, and have too few states each, together.

    Questions vary where there are more of them than states of any: then a promise for each by itself says nothing.
    """
    found = _grouped(labelled, name_of)
    states = {name: len({row.state for row in rows}) for name, rows in found.items()}
    few = [name for name, count in states.items() if count < needed]
    if len(few) <= max((states[name] for name in few), default=0):
        return found
    together = [row for name in few for row in found.pop(name)]
    return found | {OTHERS: together}


def _text_of(name: str, rows: Sequence[Labelled]) -> str:
    """For people."""
    return "questions that vary" if name == OTHERS else rows[0].answer.question.instructions

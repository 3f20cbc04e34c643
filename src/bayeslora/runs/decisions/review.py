"""Review: of the states in a log, those whose labels a decision model would learn most from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import tee
from pathlib import Path
from typing import Any

from scipy.stats import rankdata

from bayeslora.runs.decisions.calibration import name_of
from bayeslora.runs.decisions.drift import Drift
from bayeslora.runs.decisions.model import DecisionModel
from bayeslora.runs.decisions.requests import Request
from bayeslora.scoring.codes import TooLongError
from bayeslora.system.console import track
from bayeslora.system.files import atomic_file
from bayeslora.system.folders import to_be_written
from bayeslora.system.log import logger
from bayeslora.tasks.decisions import Answer, Question, Record, read_records
from bayeslora.tasks.decisions.items import without_states
from bayeslora.tasks.decisions.splits import groups_of_states
from bayeslora.tasks.reading.rows import check_there


@dataclass(frozen=True)
class Candidate:
    """A state that could be labelled.

    Args:
        id: Of its first record in the log.
        state: The state.
        answers: Of all questions that the log asks about it.
        seen: Records of the log with this state or a near copy.
        worth: See `review`.
    """

    id: str
    state: Any
    answers: dict[str, Answer]
    seen: int
    worth: float = math.nan

    @property
    def novelty(self) -> float:
        """Of the state, 0 to 1; the same for all of its questions."""
        return max(answer.novelty or 0.0 for answer in self.answers.values())

    @property
    def information(self) -> float:
        """What the labels of all its questions tell about the heads, nats: the sum of the mutual information."""
        return math.fsum(answer.mutual_information for answer in self.answers.values())

    @property
    def in_doubt(self) -> str:
        """The question with the most mutual information."""
        return max(self.answers, key=lambda name: self.answers[name].mutual_information)

    def to_dict(self) -> dict[str, Any]:
        """A record whose labels are to be filled in: None in it means no label."""
        return {
            "id": self.id,
            "state": self.state,
            "questions": {name: answer.question.to_dict() for name, answer in self.answers.items()},
            "labels": dict.fromkeys(self.answers),
            "x_worth": self.worth,
            "x_novelty": self.novelty,
            "x_mutual_information": self.information,
            "x_seen": self.seen,
            "x_answers": {name: answer.to_dict() for name, answer in self.answers.items()},
        }


@dataclass(frozen=True)
class Review:
    """What came out.

    Args:
        candidates: The most worth a label first.
        drift: Of all new states of the log, near copies counted once.
        records: Of the log.
    """

    candidates: list[Candidate]
    drift: Drift
    records: int


def review(model: DecisionModel, records: Sequence[Record], top: int | None = None, *, progress: bool = True) -> Review:
    """The states of a log by what their labels are worth.

    The worth of a state, 0 to 1, is the mean of two ranks among the states of the log, each as a share: by the mutual
    information between its labels and the heads (nats, summed over its questions, whose heads are independent: what
    labelling it is expected to teach; Houlsby et al., arXiv:1112.5745), and by its novelty (a head may be sure of
    itself where it has seen nothing). Equal ones share their rank. States that the model was fitted on are left out;
    of near copies the first stands for all. Labels in the log are not looked at.

    Args:
        model: Fitted.
        records: Of the log.
        top: How many to give; default: all.
        progress: Whether a bar shows how many states are read.

    Raises:
        ValueError: The model was not fitted, or `top` is below one.
    """
    if top is not None and top < 1:
        raise ValueError(f"top must be at least 1, got {top}.")
    if model.heads.novelty is None:
        raise ValueError("a zero-shot model knows neither novelty nor mutual information; fit it on records first.")
    fresh = without_states(records, model.trained_states, "review records")
    groups = _grouped(fresh)
    asked, ahead = tee((group, request) for group in groups if (request := _request(model, group)) is not None)
    answers = track(model.answers(each for _, each in ahead), "read", "states", total=len(groups), show=progress)
    found = [
        Candidate(group[0].id, group[0].state, answer, len(group))
        for (group, _), answer in zip(asked, answers, strict=True)
    ]
    shift = model.drift({str(place): one.novelty for place, one in enumerate(found)})
    assert shift is not None
    return Review(_ranked(found)[:top], shift, len(records))


def review_file(
    folder: str | Path,
    log: str | Path,
    output: str | Path | None = None,
    *,
    top: int | None = 20,
    device: str | None = None,
    overwrite: bool = False,
) -> Review:
    """Review the log in a file by the model in a folder.

    Args:
        folder: Of the model.
        log: Records without labels; of a record that is only a state, the model's own questions are asked.
        output: JSONL file to write, whose labels can be filled in, or None.
        top: As for `review`.
        device: As `DecisionModel.load`.
        overwrite: Replace `output`.

    Raises:
        FileExistsError: There is something at `output`, and not `overwrite`.
        TaskError: A record is wrong.
        FileNotFoundError, ValueError: As `DecisionModel.load` and `review`.
    """
    with to_be_written(output, overwrite=overwrite):
        check_there(log)
        model = DecisionModel.load(folder, device=device)
        found = review(model, read_records(log, model.questions or None), top)
        if output is not None:
            with atomic_file(output) as aside:
                lines = (
                    json.dumps(one.to_dict(), ensure_ascii=False, allow_nan=False) + "\n" for one in found.candidates
                )
                aside.write_text("".join(lines), encoding="utf-8")
    return found


def _grouped(records: Sequence[Record]) -> list[list[Record]]:
    """Records by their state, near copies with it."""
    groups: dict[str, list[Record]] = {}
    for record, name in zip(records, groups_of_states(records), strict=True):
        groups.setdefault(name, []).append(record)
    return list(groups.values())


def _request(model: DecisionModel, group: Sequence[Record]) -> Request | None:
    """Of the first state of a group; None, and a word, where it is too long."""
    first = group[0]
    same = [record for record in group if record.state_key == first.state_key]
    try:
        return model.request(first.state, _asked(same))
    except TooLongError as error:
        logger.warning("the record %r is left out: %s", first.id, error)
        return None


def _asked(records: Sequence[Record]) -> Mapping[str, Question]:
    """All questions of records with one state, each once; another one of the same id gets a number."""
    asked: dict[str, Question] = {}
    known: set[str] = set()
    for record in records:
        for name, question in record.questions.items():
            if name_of(question) not in known:
                known.add(name_of(question))
                asked[name if name not in asked else f"{name} ({len(asked) + 1})"] = question
    return asked


def _ranked(candidates: Sequence[Candidate]) -> list[Candidate]:
    if not candidates:
        return []
    ranks = [rankdata([one.information for one in candidates]), rankdata([one.novelty for one in candidates])]
    worth = (sum(ranks) / 2 - 0.5) / len(candidates)
    rated = [replace(one, worth=float(value)) for one, value in zip(candidates, worth, strict=True)]
    return sorted(rated, key=lambda one: -one.worth)

"""Records of decisions: a state, the questions about it, and what is known of their answers."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bayeslora.system.log import logger
from bayeslora.tasks.decisions.labels import Target, hard_label, read_target
from bayeslora.tasks.decisions.questions import Question, QuestionError, parse_question, parse_questions, shown, text_of
from bayeslora.tasks.reading.item import TaskError
from bayeslora.tasks.reading.rows import PlacedRow, first_row, read_rows
from bayeslora.tasks.reading.unique_keys import read_json_text

KINDS = ("noul", "choice", "score")
_LABEL_MAPS = ("labels", "expected", "gold", "answers", "targets", "soft")
_LABELS = ("label", "answer", "ground_truth", "target", "expected", "gold", "soft")
_OPTIONS = ("criteria", "options", "choices", "levels")
_READ = {"state", "questions", "question", "type", "instructions", "id", "task_id", "question_id", "family", "weight"}
_REMARKS = {"tags", "meta"}
_MOST_WEIGHT = 1e6


@dataclass(frozen=True)
class Record:
    """A state and typed questions about it.

    Args:
        state: A text, or an object or array of JSON, that is not empty.
        questions: By their ids.
        targets: By id, of the questions whose answer is known: probabilities of the options.
        id: Name of the record.
        family: What it shares with other records so closely that all must stand on one side of a split.
        weight: How much its labels count where heads are fitted, beside those of other records.
    """

    state: Any
    questions: dict[str, Question]
    targets: dict[str, Target] = field(default_factory=dict)
    id: str = ""
    family: str | None = None
    weight: float = 1.0

    @property
    def state_key(self) -> str:
        """The same for equal states, whatever the order of an object's fields."""
        return key_of(self.state)

    def label(self, question: str) -> int:
        """Index of the most probable option of a question whose answer is known."""
        return hard_label(self.targets[question])


def key_of(state: Any) -> str:
    """What `Record.state_key` is for a state."""
    text = state.strip() if isinstance(state, str) else json.dumps(state, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def check_state(state: Any, name: str = "state") -> None:
    """Whether something can be decided about `state`, which the request calls `name`.

    Raises:
        QuestionError: It is empty, or neither a text nor an object nor an array.
    """
    empty = state is None or (isinstance(state, str) and not state.strip()) or state == {} or state == []
    if empty or not isinstance(state, str | Mapping | list):
        raise QuestionError(
            f"{name} should be a text, an object or an array that is not empty, but it is {shown(state)}; give what "
            "the questions are about.",
            (name,),
        )


def is_decision_file(path: str | Path) -> bool:
    """Whether the first row of a data file is a record of decisions: a state with typed questions or one of them."""
    path = Path(path)
    if not path.is_file():
        return False
    try:
        row = first_row(path)
    except TaskError:  # Whoever reads it then says what is wrong.
        return False
    if row is None or "state" not in row.values:
        return False
    first = row.values
    question = first.get("question")
    typed = isinstance(question, Mapping) or str(question).lstrip().startswith("{") or first.get("type") in KINDS
    return "questions" in first or isinstance(first.get("labels"), Mapping) or ("question" in first and typed)


def read_records(
    path: str | Path, questions: Mapping[str, Question] | None = None, *, require_labels: bool = False
) -> list[Record]:
    """Read the records of a .jsonl, .json, .csv or .parquet file.

    A row is a System One request with labels, or one question about a state; a `weight` says how much its labels
    count where heads are fitted. The labels of a request are spelled
    `labels`, `expected`, `gold`, `answers`, `targets` or `soft` (maps by the question's id), or stand inside each
    question as `label`, `answer`, `ground_truth`, `target` or `expected`; a question in a row of its own has its label
    beside it. What is read and what is not is said in the log; fields of one's own begin with `x_`.

    Args:
        path: The file.
        questions: Those of rows that have only a state and labels.
        require_labels: Whether a file without a single label is an error.

    Raises:
        TaskError: A row is wrong; the message names file, line and question.
    """
    path = Path(path)
    records, counts, unread = [], Counter[str](), Counter[str]()
    for number, row in enumerate(read_rows(path)):
        try:
            record = parse_record(row.values, questions, f"{path.stem}-{number}")
        except TaskError as error:
            raise TaskError(f"{path}, {row.place}: {error}") from error
        counts["questions"] += len(record.questions)
        counts["labels"] += len(record.targets)
        counts["weighted"] += record.weight != 1
        unread.update(_unread(row))
        records.append(record)
    _check_ids(path, records)
    _say(path, records, counts, unread)
    if require_labels and not counts["labels"]:
        raise TaskError(
            f"{path}: expected labels, but none of its {counts['questions']} questions has one; write them as "
            f'"labels": {{"question id": ...}} (also read: {", ".join(_LABEL_MAPS[1:])}).'
        )
    return records


def parse_record(row: Mapping[str, Any], shared: Mapping[str, Question] | None = None, name: str = "") -> Record:
    """The record of one row.

    Args:
        row: Its values.
        shared: Questions of rows without any.
        name: Of a record without an id.

    Raises:
        TaskError: The state, a question or a label is wrong.
    """
    state, row = _decoded(row)
    check_state(state)
    name = str(row.get("id") or row.get("task_id") or name)
    family = None if row.get("family") in (None, "") else str(row["family"])
    if "questions" in row or "question" not in row:
        questions, targets = _many(row, shared)
    else:
        questions, targets = _single(row)
    return Record(state, questions, targets, name, family, _weight(row.get("weight")))


def _weight(value: Any) -> float:
    if value in (None, ""):
        return 1.0
    try:
        weight = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        weight = float("nan")
    if not 0 < weight <= _MOST_WEIGHT:
        raise TaskError(
            f"weight should be a number above 0 and at most {_MOST_WEIGHT:g}, but it is {shown(value)}; correct it, or "
            "leave out the field, or the record if it should not count."
        )
    return weight


def _decoded(row: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """The state, and the row with fields that hold JSON in a string read; a state is read where the questions are."""
    row, state = dict(row), row.get("state")
    for field_name in ("questions", *_LABEL_MAPS):
        value = row.get(field_name)
        if isinstance(value, str) and value.lstrip().startswith("{"):
            row[field_name] = _json(value, field_name)
            if field_name == "questions" and isinstance(state, str) and state.lstrip()[:1] in ("{", "["):
                state = _json(state, "state")
    return state, row


def _json(text: str, name: str) -> Any:
    try:
        return read_json_text(text)
    except json.JSONDecodeError as error:
        raise TaskError(
            f"field {name!r} should be JSON, but {error.msg} at column {error.colno}; correct it."
        ) from error


def _many(
    row: Mapping[str, Any], shared: Mapping[str, Question] | None
) -> tuple[dict[str, Question], dict[str, Target]]:
    raw = row.get("questions")
    questions = dict(shared) if raw is None and shared else parse_questions(raw)
    labels: dict[str, Any] = {}
    for name in _LABEL_MAPS:
        if isinstance(row.get(name), Mapping):
            labels |= _of_questions(row[name], questions)
            unknown = sorted(set(map(str, labels)) - set(questions))
            if unknown:
                raise TaskError(
                    f"{name} has a label for {unknown[0]!r}, which is no question of the record (it has "
                    f"{', '.join(questions)}); correct the id."
                )
    for name, question in (raw or {}).items():
        inside = [question[key] for key in _LABELS if question.get(key) is not None]
        labels |= {name: inside[0]} if inside else {}
    known = {name: value for name, value in labels.items() if value is not None}
    return questions, {name: _target(name, questions[name], value) for name, value in known.items()}


def _of_questions(labels: Mapping[str, Any], questions: Mapping[str, Question]) -> Mapping[str, Any]:
    """The labels by question, also where all of them stand one floor further down."""
    inner = labels.get("probabilities", labels.get("labels"))
    down = isinstance(inner, Mapping) and set(inner) <= set(questions) and not set(labels) <= set(questions)
    return inner if down else labels


def _target(name: str, question: Question, value: Any) -> Target:
    try:
        return read_target(question, value)
    except QuestionError as error:
        raise TaskError(f"question {name!r}: {error}") from error


def _single(row: Mapping[str, Any]) -> tuple[dict[str, Question], dict[str, Target]]:
    """One question in a row: a map, or a text with its type and options beside it."""
    raw = row["question"]
    if isinstance(raw, str) and raw.lstrip().startswith("{"):
        raw = _json(raw, "question")
    if not isinstance(raw, Mapping):
        raw = {"type": row.get("type") or None, "instructions": raw, "criteria": _options(row)}
    name = str(raw.get("id") or row.get("question_id") or text_of(raw.get("instructions") or raw))
    try:
        question = parse_question(raw)
    except QuestionError as error:
        raise TaskError(f"question {name!r}: {error}") from error
    found = [source[key] for source in (row, raw) for key in _LABELS if source.get(key) not in (None, "")]
    label = _cell(found[0]) if found else None
    return {name: question}, {} if label is None else {name: _target(name, question, label)}


def _options(row: Mapping[str, Any]) -> Any:
    for name in _OPTIONS:
        value = row.get(name)
        if isinstance(value, str) and value.strip():
            return _cell(value) if value.lstrip()[:1] in ("[", "{") else _separated(name, value)
        if value not in (None, ""):
            return value
    return None


def _separated(name: str, text: str) -> list[str]:
    """Options in one cell of a table."""
    options = [one.strip() for one in text.split("|")]
    if len(options) > 1:
        return options
    perhaps = [one.strip() for one in re.split(r"[,;/\n]", text) if one.strip()]
    meant = perhaps if len(perhaps) > 1 else ["billing", "shipping"]
    raise TaskError(
        f"{name} should be two or more in a cell, separated by |, but it is {shown(text)}, which is one; write "
        f"{shown(' | '.join(meant))}, or a JSON list: {shown(meant)}."
    )


def _cell(value: Any) -> Any:
    """A value of a table: maps and lists are JSON there."""
    return _json(value, "label") if isinstance(value, str) and value.lstrip()[:1] in ("[", "{") else value


def _unread(row: PlacedRow) -> list[str]:
    known = _READ | _REMARKS | {*_LABEL_MAPS, *_LABELS, *_OPTIONS, "model"}
    return [name for name in row.values if name not in known and not name.startswith("x_")]


def _check_ids(path: Path, records: Sequence[Record]) -> None:
    seen = Counter(record.id for record in records)
    repeated = [name for name, count in seen.items() if count > 1]
    # Rows with one question each may well repeat the id of their state.
    if repeated and all(len(record.questions) > 1 for record in records):
        raise TaskError(
            f"{path}: ids should differ, but {repeated[0]!r} is there {seen[repeated[0]]} times; change them."
        )


def _say(path: Path, records: Sequence[Record], counts: Counter[str], unread: Counter[str]) -> None:
    states = len({record.state_key for record in records})
    logger.info(
        "%s: %d records, %d states, %d questions, of which %d have a label",
        path,
        len(records),
        states,
        counts["questions"],
        counts["labels"],
    )
    if counts["weighted"]:
        logger.info("%s: %d records have a weight; scores and calibrations count each once", path, counts["weighted"])
    if unread:
        fields = ", ".join(f"{name} ({count})" for name, count in unread.most_common())
        logger.info("%s: fields that are not read: %s", path, fields)

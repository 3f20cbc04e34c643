"""Records of typed decisions as items of a task: one for each question whose answer is known."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bayeslora.system.log import logger
from bayeslora.tasks.decisions.labels import hard_label
from bayeslora.tasks.decisions.questions import Question, text_of
from bayeslora.tasks.decisions.records import Record, key_of, read_records
from bayeslora.tasks.decisions.splits import split_records
from bayeslora.tasks.reading.item import Item, TaskError
from bayeslora.tasks.reading.rows import READERS

FRACTION = 0.2
"""Of the records that are test, and of the rest that is dev, where they have no file of their own."""


@dataclass(frozen=True, kw_only=True)
class DecisionItem(Item):
    """A question about a state; the choices are the keys of its options.

    Args:
        state: Of the record; `question` is it as a text, and the instructions.
        asked: The question.
        name: Its id in the record.
        label_probabilities: Its label where that is a distribution, else None.
        weight: How much the label counts in training, 1 on the average.
        record: Id of its record.
        record_weight: Weight of its record, which `weight` is relative to the mean.
        order: Which option stands in each place of the prompt; None: each order that predictions average over.
    """

    state: Any
    asked: Question
    name: str = ""
    label_probabilities: tuple[float, ...] | None = None
    weight: float = 1.0
    record: str = ""
    record_weight: float = 1.0
    order: tuple[int, ...] | None = None

    @property
    def state_key(self) -> str:
        """As of a record."""
        return key_of(self.state)


Stated = TypeVar("Stated", Record, DecisionItem)


def items_of(records: Sequence[Record]) -> list[DecisionItem]:
    """The labelled questions of records; an item's id is those of its record and its question."""
    labelled = [(record, name) for record in records for name in record.targets]
    mean = math.fsum(record.weight for record, _ in labelled) / max(1, len(labelled))
    names, made = Counter[str](), []
    for record, name in labelled:
        question, target = record.questions[name], record.targets[name]
        own = f"{record.id}/{name}"
        names[own] += 1
        made.append(
            DecisionItem(
                own if names[own] == 1 else f"{own}#{names[own]}",
                f"{text_of(record.state)}\n{question.instructions}",
                question.keys,
                hard_label(target),
                state=record.state,
                asked=question,
                name=name,
                label_probabilities=None if max(target) == 1 else target,
                weight=record.weight / mean,
                record=record.id,
                record_weight=record.weight,
            )
        )
    return made


def train_file(name: str) -> Path:
    """The file of training records: the file itself, or train.jsonl (.json, .csv, ...) in a folder."""
    path = Path(name)
    if not path.is_dir():
        return path
    found = (path / f"train{ending}" for ending in READERS)
    return next((file for file in found if file.is_file()), path / "train.jsonl")


def read_splits(name: str) -> dict[str, list[Record]]:
    """The records of "train", "dev" and "test" of a file, or of a folder with a file for each.

    Without a test file a fifth of the records is test, without a dev file a fifth of the rest is dev; a state, its near
    copies and its family are in one of them. Test and dev records of a file of their own whose state is in the training
    are left out, with a word.

    Raises:
        TaskError: A record is wrong, or none of the training has a label.
    """
    path = train_file(name)
    rest, found = read_records(path, require_labels=True), {}
    questions = {one: question for record in rest for one, question in record.questions.items()}
    for part in ("test", "dev"):
        own = path.with_name(f"{part}{path.suffix}")
        if path.stem == "train" and Path(name).is_dir() and own.is_file():
            found[part] = read_records(own, questions)
        else:
            rest, found[part] = split_records(rest, FRACTION, part)
    if not rest:
        raise TaskError(
            f"{path}: expected records to train on, but all {sum(map(len, found.values()))} were drawn as test or dev "
            "records: there are too few, or their states are near copies of each other or of one family, which stand "
            "in one split. Add records of other states, or give a folder with train.jsonl, dev.jsonl and test.jsonl."
        )
    if not any(record.targets for record in rest):
        raise TaskError(f"{path}: expected labels among the {len(rest)} records to train on, but none has one.")
    known = frozenset(record.state_key for record in rest)
    return {"train": rest} | {part: without_states(found[part], known, f"{part} records") for part in ("dev", "test")}


def without_trained(items: Sequence[DecisionItem], states: frozenset[str], name: str) -> list[DecisionItem]:
    """Questions about states that a model was not fitted on; how many are left out is said.

    Raises:
        TaskError: It was fitted on all of them.
    """
    fresh = without_states(items, states, "questions")
    if items and not fresh:
        raise TaskError(
            f"{name}: expected states that the model was not fitted on, but it was fitted on all of them; give others."
        )
    return fresh


def without_states(found: Sequence[Stated], states: frozenset[str], what: str) -> list[Stated]:
    """Those whose state is none of these; how many are left out is said, and `what` they are."""
    fresh = [one for one in found if one.state_key not in states]
    if len(fresh) < len(found):
        left_out = len(found) - len(fresh)
        logger.warning("%d of %d %s have a state of training, and are left out", left_out, len(found), what)
    return fresh

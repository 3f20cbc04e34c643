"""The records: of natural texts, from tasks that are read offline, and of two generators of sys1bench."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bayeslora.tasks import get_task
from bayeslora.tasks.base import Item
from bayeslora.tasks.decisions import Record
from bayeslora.tasks.decisions.records import parse_record
from studies.decisions.sys1bench import run as sys1bench

NATURAL = ("sst2", "boolq", "openbookqa")
FIXED = ("sst2", *sys1bench.QUESTIONS)
"""Tasks that ask every record the same questions."""
POOL = 200
"""Records that draws are made from."""
WRONG = 0.15
"""Share of training labels that are wrong under "noise", as sys1bench makes them; here for yes/no questions alone."""


def load(
    folder: Path, task: str, condition: str, size: int, draw: int, tests: int
) -> tuple[list[Record], list[Record]]:
    """Records to learn from, and test records whose state is none of theirs.

    Args:
        folder: Where `studies/decisions/sys1bench/generate.sh` wrote.
        task: Of `sys1bench.QUESTIONS` or `NATURAL`.
        condition: "clean"; "noise" (SST-2 and generated records) or "unknowable" (generated ones).
        size: Records to learn from.
        draw: Which of them.
        tests: Test records.
    """
    pool, test = natural(task) if task in NATURAL else _generated(folder, task, condition)
    if task in NATURAL and condition == "noise":
        pool = list(map(_mistaken, pool))
    train = random.Random(draw).sample(pool[:POOL], size)
    seen = {record.state_key for record in train}
    return train, [record for record in test if record.state_key not in seen][:tests]


def _mistaken(record: Record) -> Record:
    """With the opposite label, by a coin of its own."""
    if random.Random(f"wrong {record.id}").random() >= WRONG:
        return record
    targets: dict[str, tuple[float, ...]] = {name: target[::-1] for name, target in record.targets.items()}
    return replace(record, targets=targets)


def reversed_options(records: Sequence[Record]) -> list[Record]:
    """The choice questions of records with their options in the opposite order."""
    turned = []
    for record in records:
        asked: dict[str, Any] = {name: record.questions[name].to_dict() for name in record.targets}
        chosen = {name: question for name, question in asked.items() if question["type"] == "choice"}
        labels = {name: record.questions[name].keys[record.label(name)] for name in chosen}
        for question in chosen.values():
            question["criteria"] = dict(reversed(question["criteria"].items()))
        if chosen:
            turned.append(parse_record({"state": record.state, "questions": chosen, "labels": labels}, name=record.id))
    return turned


def _generated(folder: Path, task: str, condition: str) -> tuple[list[Record], list[Record]]:
    test = "unknowable_test" if condition == "unknowable" else "clean_test"
    return sys1bench.load(folder, task, condition), sys1bench.load(folder, task, test)


def natural(task: str) -> tuple[list[Record], list[Record]]:
    splits = get_task(task).splits(source="offline")
    made = {"sst2": _sst2, "boolq": _boolq, "openbookqa": _openbookqa}[task]
    return [made(item) for item in splits.train], [made(item) for item in splits.test]


def _sst2(item: Item) -> Record:
    question = {"type": "noul", "instructions": "Is this review of a film positive?"}
    return _record(item, item.question, question, bool(item.label))


def _boolq(item: Item) -> Record:
    passage, question = item.question.rsplit("\n", 1)
    return _record(item, passage, {"type": "noul", "instructions": question}, bool(item.label))


def _openbookqa(item: Item) -> Record:
    question = {
        "type": "choice",
        "instructions": "Which answer or continuation is right?",
        "criteria": dict.fromkeys(item.choices),
    }
    assert item.label is not None
    return _record(item, item.question, question, item.choices[item.label])


def _record(item: Item, state: str, question: dict[str, Any], label: Any) -> Record:
    return parse_record({"state": state, "questions": {"answer": question}, "labels": {"answer": label}}, name=item.id)

"""Heads that read a state behind the announced questions, and heads that read it before any question: untouched tasks.

python -m studies.decisions.reading.measure studies/decisions/reading/results.jsonl

The reading was chosen on SST-2 and on support tickets. The tasks here were asked once, after that. Cells that are there
are not computed again.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import time
from pathlib import Path
from typing import Any

import torch

from bayeslora.runs.decisions import DecisionModel
from bayeslora.scoring.codes import Template
from bayeslora.tasks import get_task
from bayeslora.tasks.base import Item
from bayeslora.tasks.decisions import Record
from bayeslora.tasks.decisions.records import parse_record

TOPICS = ("chemistry", "law", "computer_science", "physics", "health")
READINGS = {
    "announced": None,
    "not announced": Template(state="The state:\n{state}"),
    "not announced, a line break at the end": Template(
        state="The state:\n{state}\n\n", question="Question: {instructions}\n{options}\n"
    ),
}
SIZES, DRAWS, TESTS = (50, 140), 2, 150


def records(task: str) -> tuple[list[Record], list[Record]]:
    """Records to draw from, and at most `TESTS` test records."""
    if task == "topics":
        parts = [(topic, get_task(f"mmlu_{topic}").splits(source="offline").test) for topic in TOPICS]
        rows = [_topic(item, topic) for topic, items in parts for item in items]
        random.Random(0).shuffle(rows)
        return rows[:-TESTS], rows[-TESTS:]
    splits = get_task(task).splits(source="offline")
    made = {"mrpc": _mrpc, "rte": _rte}[task]
    return [made(item) for item in splits.train], [made(item) for item in splits.test][:TESTS]


def _topic(item: Item, topic: str) -> Record:
    names = {name: name.replace("_", " ") for name in TOPICS}
    question = {"type": "choice", "instructions": "Which subject is this exam question from?", "criteria": names}
    return _record(item, question, topic)


def _mrpc(item: Item) -> Record:
    return _record(item, {"type": "noul", "instructions": "Do the two sentences say the same?"}, item.label == 1)


def _rte(item: Item) -> Record:
    return _record(
        item, {"type": "noul", "instructions": "Does the hypothesis follow from the premise?"}, item.label == 0
    )


def _record(item: Item, question: dict[str, Any], label: Any) -> Record:
    row = {"state": item.question, "questions": {"answer": question}, "labels": {"answer": label}}
    return parse_record(row, name=item.id)


def measured(reading: str, train: list[Record], test: list[Record]) -> dict[str, Any]:
    """NLL of each test label (nats), whether the answer is right, and processor seconds."""
    started = time.process_time()
    model = DecisionModel("offline:smollm2", readout="heads", template=READINGS[reading]).fit(train, progress=False)
    answers = [row.answer.probabilities for row in model.labelled(test)]
    probabilities = torch.tensor(answers, dtype=torch.float64)
    labels = torch.tensor([record.label("answer") for record in test])
    nll = -probabilities.gather(1, labels[:, None])[:, 0].log()
    return {
        "accuracy": float((probabilities.argmax(1) == labels).double().mean()),
        "nll": float(nll.mean()),
        "each": [round(value, 4) for value in nll.tolist()],
        "seconds": round(time.process_time() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--tasks", nargs="+", default=["topics", "mrpc", "rte"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("bayeslora").setLevel(logging.ERROR)
    lines = options.output.read_text(encoding="utf-8").splitlines() if options.output.exists() else []
    done = [list(row.values())[:4] for row in map(json.loads, lines)]
    for task in options.tasks:
        pool, test = records(task)
        for size, draw in [(size, draw) for size in SIZES for draw in range(DRAWS)]:
            for reading in READINGS:
                if [task, size, draw, reading] in done:
                    continue
                row: dict[str, Any] = {"task": task, "records": size, "draw": draw, "reading": reading}
                row |= measured(reading, random.Random(draw).sample(pool, size), test)
                with options.output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                print({name: value for name, value in row.items() if name != "each"}, flush=True)


if __name__ == "__main__":
    main()

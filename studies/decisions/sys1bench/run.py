"""Decision heads on generated records: SmolLM2's hidden states against TF-IDF under the same head, and codes zero-shot.

    bash studies/decisions/sys1bench/generate.sh data
    python -m studies.decisions.sys1bench.run data results.json

Each row: a task, a condition (clean, 15 % wrong training labels, 30 % unknowable), a number of records, and three draws
of them. Three questions a record; test records are generated with another seed, and states that a training record has
too are left out of the test.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from sklearn.feature_extraction.text import TfidfVectorizer

from bayeslora.prediction.predictive import Predictive
from bayeslora.prediction.temperature import fit_temperature
from bayeslora.runs.decisions import DecisionModel
from bayeslora.runs.decisions.examples import Examples
from bayeslora.runs.decisions.heads import Heads, signature
from bayeslora.runs.decisions.reading import Vectors
from bayeslora.tasks.decisions import Answer, Question, Record, read_records
from bayeslora.tasks.decisions.questions import text_of

QUESTIONS = {
    "support_tickets": ("queue", "is_angry", "priority"),
    "phishing_email": ("is_phishing", "attack_class", "urgency"),
}
SIZES = (25, 50, 200)
DRAWS = 3
FAR = 20
"""States of the other task, for the novelty."""
GROUP = ("task", "condition", "records", "features")
SCORES = ("accuracy", "nll", "ece", "novelty_auroc")


Asked = tuple[Any, Sequence[Question]]
Read = Callable[[Iterable[Asked]], Iterable[Vectors]]


class Kept:
    """A reader that reads each state and question once."""

    def __init__(self, read: Read):
        self.read, self.seconds, self.count = read, 0.0, 0
        self.known: dict[tuple[Any, ...], Vectors] = {}

    def vectors(self, asked: Iterable[Asked]) -> list[Vectors]:
        asked = list(asked)
        keys = [(text_of(state), *map(signature, questions)) for state, questions in asked]
        new = {key: one for key, one in zip(keys, asked, strict=True) if key not in self.known}
        started = time.perf_counter()
        self.known.update(zip(new, self.read(new.values()), strict=True))
        self.seconds += time.perf_counter() - started
        self.count += len(new)
        return [self.known[key] for key in keys]


def tf_idf(train: Sequence[Record]) -> Read:
    """The words of the state, and nothing of the question, as vectors of the head."""
    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2)).fit([text_of(record.state) for record in train])

    def read(asked: Iterable[Asked]) -> Iterator[Vectors]:
        for state, questions in asked:
            row = torch.from_numpy(words.transform([text_of(state)]).toarray()[0]).float()
            yield Vectors(row[None, None], torch.zeros(len(questions), 1, 2, len(row)))

    return read


def load(folder: Path, task: str, name: str) -> list[Record]:
    kept = QUESTIONS[task]
    return [
        Record(
            record.state,
            {one: record.questions[one] for one in kept},
            {one: record.targets[one] for one in kept},
            record.id,
        )
        for record in read_records(folder / f"{task}_{name}.jsonl")
    ]


def scores(answers: Sequence[Answer], labels: Sequence[int]) -> dict[str, float]:
    """Accuracy, NLL (nats), ECE of the top probability in 15 equal bins, and AURC by confidence."""
    nll = [-math.log(max(a.probabilities[y], 1e-300)) for a, y in zip(answers, labels, strict=True)]
    right = [float(a.best == y) for a, y in zip(answers, labels, strict=True)]
    top = [max(a.probabilities) for a in answers]
    bins: dict[int, list[int]] = {}
    for index, p in enumerate(top):
        bins.setdefault(min(14, int(p * 15)), []).append(index)
    ece = sum(abs(sum(right[i] - top[i] for i in members)) for members in bins.values()) / len(top)
    return {"accuracy": sum(right) / len(right), "nll": sum(nll) / len(nll), "ece": ece}


def asked(heads: Heads, reader: Any, test: Sequence[Record]) -> tuple[list[Answer], list[int]]:
    answers, labels = [], []
    read = reader.vectors((record.state, heads.fitted(record.questions)) for record in test)
    for record, vectors in zip(test, read, strict=True):
        found = heads.answers(vectors, record.questions, heads.novelty_of(vectors))
        answers += [found[name] for name in record.targets]
        labels += [record.label(name) for name in record.targets]
    return answers, labels


def rows_of(
    model: DecisionModel, reader: Kept, options: argparse.Namespace, task: str, far: Sequence[Record]
) -> Iterator[dict[str, Any]]:
    for condition, size in itertools.product(options.conditions, SIZES):
        pool = load(options.data, task, condition)
        test = load(options.data, task, "unknowable_test" if condition == "unknowable" else "clean_test")[
            : options.tests
        ]
        for draw in range(DRAWS if size < len(pool) else 1):
            train = random.Random(draw).sample(pool, size)
            seen = {record.state_key for record in train}
            fresh = [record for record in test if record.state_key not in seen]
            for name, vectors in (("tf-idf", Kept(tf_idf(train))), ("hidden states", reader)):
                started = time.perf_counter()
                examples = Examples.of(vectors, train, progress=False)
                heads = Heads.fit(examples, model.config, fewest=2)
                seconds = time.perf_counter() - started
                answers, labels = asked(heads, vectors, fresh)
                row = {"task": task, "condition": condition, "records": size, "draw": draw, "features": name}
                row |= scores(answers, labels) | {"fit_seconds": round(seconds, 2), "test_answers": len(labels)}
                row["novelty_auroc"] = auroc(heads, vectors, fresh, far)
                print(json.dumps(row), flush=True)
                yield row
    if "clean" in options.conditions:
        yield zero_shot(model, options.data, task)


def auroc(heads: Heads, reader: Any, near: Sequence[Record], far: Sequence[Record]) -> float:
    """Of novelty, between test states and states of the other generator."""

    def novelty(vectors: Vectors) -> float:
        found = heads.novelty_of(vectors)
        assert found is not None, "heads that were fitted know states"
        return found

    low, high = (
        [novelty(vectors) for vectors in reader.vectors((record.state, []) for record in part)] for part in (near, far)
    )
    won = sum((b > a) + (b == a) / 2 for a in low for b in high)
    return won / len(low) / len(high)


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the draws of each task, condition, number of records and kind of features."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if "records" in row:
            groups.setdefault(tuple(row[name] for name in GROUP), []).append(row)
    return [
        dict(zip(GROUP, key, strict=True))
        | {"draws": len(members)}
        | {name: sum(row[name] for row in members) / len(members) for name in SCORES}
        for key, members in groups.items()
    ]


def zero_shot(model: DecisionModel, folder: Path, task: str) -> dict[str, Any]:
    """Codes without training, and with one temperature from 50 training records."""
    test = load(folder, task, "clean_test")[:25]
    train = random.Random(0).sample(load(folder, task, "clean"), 25)
    parts = {}
    for name, records in (("train", train), ("test", test)):
        found = [model.reader(r.state, list(r.questions.values())) for r in records]
        parts[name] = [score for scores in found for score in scores]
    labels = {
        name: [r.label(q) for r in records for q in r.targets] for name, records in (("train", train), ("test", test))
    }
    joined = Predictive.concatenate([Predictive(score[None, None]) for score in parts["train"]])
    temperature = fit_temperature(joined, torch.tensor(labels["train"])).value
    questions = [question for record in test for question in record.questions.values()]
    row: dict[str, Any] = {
        "task": task,
        "condition": "clean",
        "features": "codes, zero-shot",
        "temperature": temperature,
    }
    for name, value in (("", 1.0), ("_with_temperature", temperature)):
        answers = [
            Answer(question, tuple(torch.softmax(score / value, -1).tolist()))
            for question, score in zip(questions, parts["test"], strict=True)
        ]
        row |= {f"{key}{name}": number for key, number in scores(answers, labels["test"]).items()}
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--tasks", nargs="+", default=list(QUESTIONS))
    parser.add_argument("--conditions", nargs="+", default=["clean", "noise", "unknowable"])
    parser.add_argument("--tests", type=int, default=150, help="Test records.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = DecisionModel("offline:smollm2", readout="heads")
    content: dict[str, Any] = {
        "command": " ".join(["python -m studies.decisions.sys1bench.run", *sys.argv[1:]]),
        "rows": [],
    }
    for task in options.tasks:
        other = next(name for name in QUESTIONS if name != task)
        far = load(options.data, other, "clean_test")[:FAR]
        asked = load(options.data, task, "clean_test")[0].questions.values()
        reader = Kept(model.hidden.announcing(asked).vectors)
        for row in rows_of(model, reader, options, task, far):
            content["rows"].append(row)
            content |= {"summary": summary(content["rows"])}
            content |= {"seconds_per_state": reader.seconds / max(1, reader.count), "states_read": reader.count}
            options.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

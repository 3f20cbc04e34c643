"""Our scores of the answers that `sys1bench run` has written, by question: each answer once, in its first order.

python -m studies.decisions.sys1bench.ours predictions.jsonl train.jsonl test.jsonl

Test states that a training record has too are left out, which sys1bench's own scorecard does not do.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from studies.decisions.peers.scores import scores

COLUMNS = ("accuracy", "nll", "ece", "ece_floor", "aurc", "coverage_at_5")


def lines(file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def unseen(train: str, test: str) -> set[str]:
    """Names of the test records whose state no training record has."""
    seen = {json.dumps(row["state"], sort_keys=True) for row in lines(train)}
    return {row["task_id"] for row in lines(test) if json.dumps(row["state"], sort_keys=True) not in seen}


def main(predictions: str, train: str, test: str) -> None:
    new = unseen(train, test)
    rows = [row for row in lines(predictions) if row["task_id"] in new and not row["error"]]
    first = [row for row in rows if row["permutation_id"] == "p0"]
    best = {(row["task_id"], row["question_key"]): row["argmax"] for row in first}
    print("\n| ours, states that are new | answers | " + " | ".join(COLUMNS) + " | flips |")
    print("|---|" + "---|" * (len(COLUMNS) + 2))
    for question in dict.fromkeys(row["question_key"] for row in first):
        own = [row for row in first if row["question_key"] == question]
        labels = [row["option_keys"].index(row["ground_truth"]) for row in own]
        found = scores([row["probs"] for row in own], labels)
        again = [row for row in rows if row["question_key"] == question and row["permutation_id"] != "p0"]
        flips = sum(row["argmax"] != best[(row["task_id"], question)] for row in again) / max(1, len(again))
        values = " | ".join(f"{found[name]:.3f}" for name in COLUMNS)
        print(f"| {question} | {len(own)} | {values} | {flips:.3f} |")


if __name__ == "__main__":
    main(*sys.argv[1:])

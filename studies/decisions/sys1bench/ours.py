"""Our scores of the answers that `sys1bench run` has written, by question: each answer once, in its first order.

python studies/decisions/sys1bench/ours.py predictions.jsonl
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from studies.decisions.peers.scores import scores

COLUMNS = ("accuracy", "nll", "ece", "ece_floor", "aurc", "coverage_at_5")


def main(file: Path) -> None:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    first = [row for row in rows if row["permutation_id"] == "p0" and not row["error"]]
    best = {(row["task_id"], row["question_key"]): row["argmax"] for row in first}
    print("\n| ours | answers | " + " | ".join(COLUMNS) + " | flips |")
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
    main(Path(sys.argv[1]))

"""How many tokens SmolLM2 reads to answer each request of jevcompat, by the most options that one of its questions has.

jevcompat mock --port 8199 &
jevcompat test http://127.0.0.1:8199 --json build/mock.json
python -m studies.decisions.jevcompat.tokens build/mock.json studies/decisions/jevcompat/tokens.json

The report is jevcompat's own, with its exchanges; whoever answers, it asks the same. A question is read
in two orders of its options.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bayeslora.runs.decisions.config import DecisionConfig
from bayeslora.runs.decisions.reading import open_reader
from bayeslora.scoring.codes import CodeReader, Template
from bayeslora.tasks.decisions import QuestionError, parse_questions
from bayeslora.tasks.decisions.records import check_state

GROUPS = {"to 10 options": 10, "11 to 32": 32, "33 to 128": 128, "129 to 255": 255}


def requests(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Bodies that were answered."""
    for exchange in report["exchanges"]:
        body = exchange["request"]
        if exchange["status"] == 200 and isinstance(body, dict) and "questions" in body:
            yield body


def tokens(reader: CodeReader, body: dict[str, Any]) -> tuple[int, int]:
    """The most options of a question, and how many tokens the request has."""
    check_state(body["state"])
    state, questions = reader.state_tokens(body["state"]), parse_questions(body["questions"]).values()
    rows = (row for question in questions for row in reader.prompts(state, question))
    return max(len(question.options) for question in questions), len(state) + sum(map(len, rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    reader = open_reader(DecisionConfig("offline:smollm2", device="cpu"), Template())
    found = {name: {"requests": 0, "tokens": 0} for name in GROUPS}
    for body in requests(json.loads(options.report.read_text())):
        try:
            most, count = tokens(reader, body)
        except QuestionError:
            continue
        group = next(name for name, bound in GROUPS.items() if most <= bound)
        found[group]["requests"] += 1
        found[group]["tokens"] += count
    options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

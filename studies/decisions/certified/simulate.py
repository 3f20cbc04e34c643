"""Does a certified threshold keep its promise? Many draws of generated answers, one or six questions a state.

    python studies/decisions/certified/simulate.py studies/decisions/certified/results.json

An answer with score s (uniform) is wrong with probability (1 - s) / 2; all questions of a state are right or wrong
together. The share of errors above a threshold t is then (1 - t) / 4 exactly: a broken promise is seen without noise.
"""

from __future__ import annotations

import json
import random
import sys
from typing import Any

from bayeslora.prediction.certified import certified_threshold

ALPHA = DELTA = 0.1
DRAWS = 1000


def drawn(seed: int, states: int, questions: int) -> tuple[list[float], list[bool], list[int]]:
    generator = random.Random(seed)
    scores, wrong, names = [], [], []
    for state in range(states):
        score = generator.random()
        error = generator.random() < (1 - score) / 2
        scores += [score] * questions
        wrong += [error] * questions
        names += [state] * questions
    return scores, wrong, names


def row(states: int, questions: int, unit: str) -> dict[str, Any]:
    broken, coverage, nothing = 0, 0.0, 0
    for seed in range(DRAWS):
        scores, wrong, names = drawn(seed, states, questions)
        units = names if unit == "state" else list(range(len(names)))
        found = certified_threshold(scores, wrong, units, ALPHA, DELTA)
        nothing += found.threshold is None
        broken += found.threshold is not None and (1 - found.threshold) / 4 > ALPHA
        coverage += 0.0 if found.threshold is None else 1 - found.threshold
    shares = {"broken": broken / DRAWS, "coverage": coverage / DRAWS, "nothing_certified": nothing / DRAWS}
    return {"states": states, "questions_a_state": questions, "unit": unit} | shares


def main() -> None:
    cells = [(states, questions, "state") for states in (100, 300) for questions in (1, 6)]
    rows = [row(*cell) for cell in [*cells, (100, 6, "question"), (300, 6, "question")]]
    content = {"alpha": ALPHA, "delta": DELTA, "draws": DRAWS, "best_coverage": 0.4, "rows": rows}
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()

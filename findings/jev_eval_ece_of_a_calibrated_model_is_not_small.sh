#!/usr/bin/env bash
# jev-eval 1.2.0 (PyPI), numpy 2.4.6.
#
# Expected: a model whose probabilities are right has an expected calibration error near 0, and one set of probabilities
# has one error, whoever serves them.
# Seen: for choice and score questions jev-eval compares the share of right answers with the answer's `confidence`. In
# System One's format that is no probability but (max p - 1/n) / (1 - 1/n), which is 0 for a model that knows nothing and
# is right in 1/n. So the truth itself is "poorly calibrated", by more the fewer options there are, and a model that is
# overconfident by just so much is given an error near 0. OpenAI's and Gemini's confidence is the top probability, and
# decisionformer's System One server sends 1 - entropy / log n: three numbers for the same probabilities. `calibrate` and
# the advice "thresholds on it are shaky" rest on this. Noul questions are compared by their probability and are right. (Its
# README says which number is binned, not what that does to the error.)
#
# Output seen (20,000 questions with 3 options, labels drawn from the model's own probabilities):
#   top probability: ECE 0.009
#   System One's confidence: ECE 0.195, with the warning
#   1 - entropy / log n: ECE 0.370, with the warning
#   overconfident probabilities (a third put on the top) with System One's confidence: ECE 0.009
#   their top probability: ECE 0.128, with the warning
#   noul, calibrated: ECE 0.010
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-deps jev-eval==1.2.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
from jev_eval import report
from jev_eval.render import render_question

KEYS = ("a", "b", "c")


def top(p):
    return float(p.max())


def system_one(p):
    return float((p.max() - 1 / len(p)) / (1 - 1 / len(p)))


def entropy(p):
    return float(1 + (p * np.log(p)).sum() / np.log(len(p)))


def judged(kind, answers, labels):
    """ECE as the report has it, and whether the report warns."""
    question = {"type": kind, "instructions": "?", "criteria": dict.fromkeys(KEYS)}
    records = [
        {"model": "m", "row": row, "id": "q", "type": kind, "question": question, "answer": answer, "gold": label}
        | {"state_hash": str(row), "state_chars": 9}
        for row, (answer, label) in enumerate(zip(answers, labels))
    ]
    found = report(records)["questions"]["q"]
    return found.ece, "poorly calibrated" in render_question(found)


def choice(name, probabilities, confidence, labels):
    answers = [
        {"type": "choice", "choice": KEYS[p.argmax()], "probabilities": dict(zip(KEYS, p.tolist())), "confidence": confidence(p)}
        for p in probabilities
    ]
    error, warned = judged("choice", answers, [KEYS[label] for label in labels])
    print(f"{name}: ECE {error:.3f}{', with the warning' if warned else ''}")
    return error, warned


generator = np.random.default_rng(0)
truth = generator.dirichlet(np.ones(3), 20000).clip(1e-9)
truth /= truth.sum(1, keepdims=True)
labels = (truth.cumsum(1) < generator.random((len(truth), 1))).sum(1).clip(0, 2)
sure = (2 * truth + np.eye(3)[truth.argmax(1)]) / 3

plain = choice("top probability", truth, top, labels)
chance = choice("System One's confidence", truth, system_one, labels)
spread = choice("1 - entropy / log n", truth, entropy, labels)
wrong = choice("overconfident probabilities (a third put on the top) with System One's confidence", sure, system_one, labels)
honest = choice("their top probability", sure, top, labels)
yes = generator.random(5000)
noul = judged("noul", [{"type": "noul", "noul": float(p)} for p in yes], (generator.random(5000) < yes).tolist())
print(f"noul, calibrated: ECE {noul[0]:.3f}")

assert plain[0] < 0.02 and not plain[1] and noul[0] < 0.03 and not noul[1]
assert chance[0] > 0.15 and chance[1] and spread[0] > 0.2 and spread[1]
assert wrong[0] < 0.02 and not wrong[1] and honest[0] > 0.1 and honest[1]
PYTHON
echo "as stated"

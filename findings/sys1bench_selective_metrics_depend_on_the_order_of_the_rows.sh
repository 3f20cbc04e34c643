#!/usr/bin/env bash
# sys1bench 0.3.2, against jev-eval 1.2.0 and any2jev 0.1.0 (PyPI), numpy 2.4.6.
#
# Expected: AURC and "coverage at 5 % risk" belong to a set of predictions, whatever line of the file each stands on; two
# packages of one field agree on them.
# Seen: sys1bench and any2jev sort by confidence, stably, and then cut between any two rows, equal confidences included.
# No threshold can do that. jev-eval cuts between distinct confidences only. Ties are the rule where a model is sure (1.0)
# or reads logits in bfloat16, and in every constant baseline, such as sys1bench's own majority_prior. On 1,000 yes/no
# questions, 70 % "yes", whose file holds the yes questions first, a constant "yes" at 0.7 gets a coverage at 5 % risk of
# 73.6 % and threshold_at_risk_5 = 0.7, where the risk is 30 %; with the no questions first it gets 0, which is the truth.
# A calibrated model's confidences, rounded to two digits, are enough for 0.596 to 0.666. Shuffle the rows, at least.
#
# Output seen:
#   constant, yes first: sys1bench aurc 0.0503, coverage 0.736 at threshold 0.7, any2jev 0.736, jev-eval 0.000
#   constant, no first: sys1bench aurc 0.6602, coverage 0.000 at threshold nan, any2jev 0.000, jev-eval 0.000
#   a calibrated model at two digits, wrong answers first: sys1bench aurc 0.0469, coverage 0.596 at threshold 0.89,
#       any2jev 0.596, jev-eval 0.595
#   the same, right answers first: sys1bench aurc 0.0397, coverage 0.666 at threshold 0.88, any2jev 0.666, jev-eval 0.595
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-deps sys1bench==0.3.2 jev-eval==1.2.0 any2jev==0.1.0
"$folder/venv/bin/pip" install --quiet numpy==2.4.6 scipy==1.17.1 pydantic==2.14.4 pyyaml==6.0.3 httpx==0.28.1 pandas==3.1.1 2>/dev/null
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
from any2jev import calibration as any2jev
from jev_eval.score import Scored
from jev_eval.thresholds import recommend_threshold
from sys1bench.metrics import selective as sys1bench


def judge(name, confidence, correct):
    """The selective metrics of three packages on one set of predictions, in the order given."""
    items = [
        Scored(row, "noul", p, bool(hit), p, bool(hit), True, bool(hit))
        for row, (p, hit) in enumerate(zip(confidence.tolist(), correct.tolist()))
    ]
    gate = recommend_threshold(items, target_accuracy=0.95)
    seen = sys1bench.selective_summary(confidence, correct)
    other, honest = any2jev.coverage_at_risk(confidence, correct, 0.05), gate.coverage if gate else 0.0
    print(
        f"{name}: sys1bench aurc {seen['aurc']:.4f}, coverage {seen['coverage_at_risk_5']:.3f} at threshold "
        f"{seen['threshold_at_risk_5']:.3g}, any2jev {other:.3f}, jev-eval {honest:.3f}"
    )
    return seen["aurc"], seen["coverage_at_risk_5"], seen["threshold_at_risk_5"], other, honest


correct = np.repeat([1.0, 0.0], [700, 300])  # "yes" to each question of a file that holds the yes questions first
constant = np.full(1000, 0.7)
yes_first = judge("constant, yes first", constant, correct)
no_first = judge("constant, no first", constant, correct[::-1])

generator = np.random.default_rng(0)
confidence = generator.beta(8, 1, 1000).clip(0.5).round(2)
correct = (generator.random(1000) < confidence).astype(float)
worst = judge("a calibrated model at two digits, wrong answers first", *(x[np.argsort(correct)] for x in (confidence, correct)))
best = judge("the same, right answers first", *(x[np.argsort(-correct)] for x in (confidence, correct)))

assert yes_first[1] > 0.7 and yes_first[2] == 0.7 and no_first[1] == 0 and yes_first[4] == no_first[4] == 0
assert no_first[0] - yes_first[0] > 0.5
assert yes_first[1] == yes_first[3] and best[1] == best[3] and worst[1] == worst[3]
assert best[1] - worst[1] > 0.02 and best[4] == worst[4]
PYTHON
echo "as stated"

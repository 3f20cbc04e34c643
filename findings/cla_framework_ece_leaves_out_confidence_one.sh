#!/usr/bin/env bash
# cla-framework 0.1.0 (PyPI, "Confidence-based Learning with Abstention"), numpy 2.4.6, scikit-learn 1.9.1, matplotlib 3.10.8.
#
# Expected: expected_calibration_error(y_true, y_pred, confidences) counts every row, those of full confidence above all.
# Seen: its ten bins end below 1, so rows of confidence exactly 1 are in none of them; they are divided by, but their error counts
# as 0. The package's own make_calibrated_rf, which calibrates by isotonic regression, gives that confidence time and again. A
# model that is surely wrong in every row has an error of 0.000, and one that says 1 and is right in half of the rows too, where
# 0.999 gives 0.478. A forest whose labels have changed in a fifth of the rows since it learned still looks calibrated.
#
# Output seen on 29 November 2026 (2,000 test rows, two classes):
#   always 1.0, always wrong: 0.000, by hand 1.000; confidence exactly 1 in 100% of the rows
#   always 1.0, right in half: 0.000, by hand 0.478; confidence exactly 1 in 100% of the rows
#   always 0.999, right in half: 0.478, by hand 0.477; confidence exactly 1 in 0% of the rows
#   make_calibrated_rf, a fifth of the labels changed since: 0.003, by hand 0.207; confidence exactly 1 in 98% of the rows
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile numpy==2.4.6 scikit-learn==1.9.1 matplotlib==3.10.8 2>/dev/null
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps cla-framework==0.1.0 2>/dev/null
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
from cla_framework import SklearnLearner, expected_calibration_error, make_calibrated_rf

generator = np.random.default_rng(0)


def by_hand(right, confidences):
    """The error over the same ten bins, the last of them closed."""
    bins = np.minimum((confidences * 10).astype(int), 9)
    return sum(abs((right - confidences)[bins == each].sum()) for each in range(10)) / len(right)


def compared(name, labels, predictions, confidences):
    found = expected_calibration_error(labels, predictions, confidences)
    right = by_hand(labels == predictions, confidences)
    print(f"{name}: {found:.3f}, by hand {right:.3f}; confidence exactly 1 in {(confidences == 1).mean():.0%} of the rows")
    return found, right


labels = generator.integers(0, 2, 2000)
rows = {
    "always 1.0, always wrong": compared("always 1.0, always wrong", labels, 1 - labels, np.ones(2000)),
    "always 1.0, right in half": compared("always 1.0, right in half", labels, np.ones(2000, int), np.ones(2000)),
    "always 0.999, right in half": compared("always 0.999, right in half", labels, np.ones(2000, int), np.full(2000, 0.999)),
}

# a rule that a forest learns well, and that a fifth of the test rows no longer follow
features = generator.normal(size=(3000, 5))
answers = (features[:, 0] > 0).astype(int)
learner = SklearnLearner(make_calibrated_rf(n_estimators=50))
learner.fit(features[:1000], answers[:1000])
drifted = np.where(generator.random(2000) < 0.2, 1 - answers[1000:], answers[1000:])
probabilities = learner.predict_proba(features[1000:])
own = compared("make_calibrated_rf, a fifth of the labels changed since", drifted, probabilities.argmax(1), probabilities.max(1))

assert rows["always 1.0, always wrong"] == (0, 1), rows
assert rows["always 1.0, right in half"][0] == 0 and rows["always 1.0, right in half"][1] > 0.45, rows
assert abs(np.subtract(*rows["always 0.999, right in half"])) < 1e-9, rows
assert own[0] < own[1] / 2, own
PYTHON
echo "as stated"

#!/usr/bin/env bash
# venn-abers 1.5.4 (PyPI, Venn-Abers calibration), numpy 2.4.6, scikit-learn 1.9.1, pandas 3.1.1.
#
# Expected: VennAbersCalibrator().predict_proba(p_cal, y_cal, p_test) of six options gives probabilities of six options, "shape
# (n_samples, n_classes)", column k for option k as in p_test, also where a rare option is the answer of no calibration item.
# Seen: the options are those that occur in y_cal. If one does not, its column is left out and all later ones move up by one,
# without a word: argmax over the columns, and the probability at the label's index, are of the next option. A model that
# is right in 88 % of the items is "calibrated" to 21 %, and one item of the rare option in the calibration data puts all back.
# predict(one_hot=False) keeps the labels apart and is right; predict() gives rows of five. Both va_types alike.
#
# Output seen on 29 November 2026 (200 calibration items, 5,000 test items, option 1 is right in 1 of 100):
#   the model itself: accuracy 0.882, probability of the right answer 0.747
#   no item of option 1, one_vs_one: 5 columns, accuracy 0.214, probability of the right answer 0.196
#   no item of option 1, one_vs_all: 5 columns, accuracy 0.215, probability of the right answer 0.203
#   one item of option 1, one_vs_one: 6 columns, accuracy 0.856, probability of the right answer 0.639
#   one item of option 1, one_vs_all: 6 columns, accuracy 0.870, probability of the right answer 0.724
#   no item of option 1, predict(one_hot=False): accuracy 0.853
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile numpy==2.4.6 scikit-learn==1.9.1 pandas==3.1.1 2>/dev/null
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps venn-abers==1.5.4 2>/dev/null
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
from venn_abers import VennAbersCalibrator

OPTIONS, RARE = 6, 1
SHARES = np.array([0.2, 0.01, 0.2, 0.2, 0.2, 0.19])
generator = np.random.default_rng(0)


def drawn(items):
    """Labels, and the probabilities of an overconfident model of them."""
    labels = generator.choice(OPTIONS, items, p=SHARES)
    logits = generator.normal(size=(items, OPTIONS)) + np.log(SHARES)
    logits[np.arange(items), labels] += 2.5
    weights = np.exp(1.5 * logits)
    return weights / weights.sum(axis=1, keepdims=True), labels


def measures(probabilities, labels):
    """Accuracy, and the mean probability of the right answer, by the columns' numbers."""
    inside = labels < probabilities.shape[1]
    right = probabilities[inside, labels[inside]].sum() / len(labels)
    return (probabilities.argmax(axis=1) == labels).mean(), right


(known, answers), (test, truth) = drawn(200), drawn(5000)
absent = answers != RARE
known, answers = known[absent], answers[absent]
item = drawn(2000)
one = np.flatnonzero(item[1] == RARE)[:1]
accuracy, right = measures(test, truth)
print(f"the model itself: accuracy {accuracy:.3f}, probability of the right answer {right:.3f}")
found = {}
for name, scores, labels in (
    ("no item of option 1", known, answers),
    ("one item of option 1", np.vstack([known, item[0][one]]), np.append(answers, RARE)),
):
    for kind in ("one_vs_one", "one_vs_all"):
        calibrated, _ = VennAbersCalibrator().predict_proba(
            p_cal=scores, y_cal=labels, p_test=test, va_type=kind, p0_p1_output=True
        )
        found[name, kind] = (calibrated.shape[1], *measures(calibrated, truth))
        columns, hits, right = found[name, kind]
        print(f"{name}, {kind}: {columns} columns, accuracy {hits:.3f}, probability of the right answer {right:.3f}")
hits = (VennAbersCalibrator().predict(p_cal=known, y_cal=answers, p_test=test, one_hot=False) == truth).mean()
print(f"no item of option 1, predict(one_hot=False): accuracy {hits:.3f}")

for (name, _), (columns, share, _) in found.items():
    assert (columns, share < 0.3) == ((5, True) if name.startswith("no") else (6, False)), found
assert accuracy > 0.85 and hits > accuracy - 0.05, (accuracy, hits)
PYTHON
echo "as stated"

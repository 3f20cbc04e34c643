#!/usr/bin/env bash
# puncc 0.9.3 (PyPI, conformal prediction), numpy 2.4.6.
#
# Expected: RAPS at lambd=0, its default, is APS (Romano et al. 2020): the prediction set of an item depends on that item and on
# the quantile of the calibration set, whatever else stands in the batch, and holds the label in 1 - alpha of the cases.
# Seen: raps_set cuts the size of a set to the number of ITEMS in the batch, where the number of classes was meant. Served one
# item at a time each set is the likeliest class alone: coverage 35 % at a promised 90 %, and two items at a time give sets
# of two. Evaluated in batches larger than the number of classes, as tests are, all is well. LAC does not do it.
#
# Output seen (20 classes, probabilities that are the truth, 1,000 items to calibrate, 2,000 to test, alpha 0.1, rand=False):
#   batches of 2000: coverage 0.917, mean size 9.68
#   batches of 4: coverage 0.692, mean size 3.98
#   batches of 1: coverage 0.348, mean size 1.00
#   by the definition: coverage 0.917, mean size 9.68; LAC in batches of 1: coverage 0.893, mean size 8.51
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile numpy==2.4.6 scikit-learn==1.9.1 2>/dev/null
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps puncc==0.9.3
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
from deel.puncc.api.prediction import BasePredictor
from deel.puncc.classification import LAC, RAPS

CLASSES, CALIBRATION, ALPHA = 20, 1000, 0.1
generator = np.random.default_rng(0)
logits = 1.5 * generator.normal(size=(3000, CLASSES))
probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
labels = np.array([generator.choice(CLASSES, p=row) for row in probs])
test, truth = probs[CALIBRATION:], labels[CALIBRATION:]


class AsGiven(BasePredictor):
    """The items are their own probabilities."""

    def predict(self, X, **kwargs):
        return X


def of_the_package(kind, batch, **options):
    """The sets of the test items, read a batch at a time."""
    predictor = kind(AsGiven(None, is_trained=True), train=False, **options)
    predictor.fit(X_calib=probs[:CALIBRATION], y_calib=labels[:CALIBRATION])
    batches = (predictor.predict(test[start : start + batch], alpha=ALPHA)[1] for start in range(0, len(test), batch))
    return [members for found in batches for members in found]


def by_definition():
    """APS without randomisation: the classes from the likeliest on until their mass reaches the quantile of the calibration set."""
    order = np.argsort(-probs, axis=1)
    mass = np.take_along_axis(probs, order, axis=1).cumsum(axis=1)
    score = mass[order == labels[:, None]][:CALIBRATION]
    threshold = np.sort(score)[int(np.ceil((1 - ALPHA) * (CALIBRATION + 1))) - 1]
    sizes = np.minimum((mass < threshold).sum(axis=1) + 1, CLASSES)
    return [row[:size] for row, size in zip(order[CALIBRATION:], sizes[CALIBRATION:])]


def summary(sets):
    """Share of items whose label is in their set, and the mean size of a set."""
    return float(np.mean([label in members for label, members in zip(truth, sets)])), float(np.mean([len(s) for s in sets]))


seen = {batch: summary(of_the_package(RAPS, batch, rand=False)) for batch in (2000, 4, 1)}
right, lac = summary(by_definition()), summary(of_the_package(LAC, 1))
for batch, (coverage, size) in seen.items():
    print(f"batches of {batch}: coverage {coverage:.3f}, mean size {size:.2f}")
print(
    f"by the definition: coverage {right[0]:.3f}, mean size {right[1]:.2f}; "
    f"LAC in batches of 1: coverage {lac[0]:.3f}, mean size {lac[1]:.2f}"
)
assert np.allclose(seen[2000], right) and right[0] > 0.88 and lac[0] > 0.88, (seen, right, lac)
assert seen[1][1] == 1 and seen[1][0] < 0.4 and seen[4][1] < 4 and seen[4][0] < 0.75, seen
PYTHON
echo "as stated"

#!/usr/bin/env bash
# MAPIE 1.6.0 (PyPI), scikit-learn 1.9.1, numpy 2.4.6.
#
# Expected: expected_calibration_error (and top_label_ece, which calls it) with split_strategy="array split", one of the
# three it allows, cuts the items into num_bins groups of about equal size by their scores; the error belongs to the set of
# items, whatever row each stands on, and is near that of "quantile".
# Seen: the scores are cut into groups as they stand, unsorted, and the largest score of each group is taken for a bin's edge.
# In a file in no order each group holds a score near 1, so all edges lie there and nearly every item falls into the first
# bin. Over- and underconfidence cancel in it: a model that says 0.05 to 0.95 where the truth is 0.37 to 0.64 has an error of
# 0.02, a tenth of the 0.18 of both other strategies, which the same rows have as soon as they are sorted by score.
#
# Output seen (2,000 items, 10 bins):
#   uniform: in no order 0.1821, sorted 0.1821
#   quantile: in no order 0.1815, sorted 0.1815
#   array split: in no order 0.0190, sorted 0.1833
#   array split, by hand from sorted scores 0.1833; items in the first of the 10 bins in no order 99 %, sorted 10 %
#   top_label_ece with array split, ten classes: in no order 0.0704, sorted 0.1975; uniform 0.1904
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile numpy==2.4.6 scikit-learn==1.9.1 pandas==3.1.1 2>/dev/null
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps mapie==1.6.0 2>/dev/null
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
from mapie.metrics.calibration import _calc_bins, expected_calibration_error, top_label_ece

BINS = 10


def by_hand(labels, scores):
    """The error over groups of equal size, from the scores in order."""
    groups = np.array_split(np.argsort(scores), BINS)
    return sum(len(group) * abs(labels[group].mean() - scores[group].mean()) for group in groups) / len(scores)


def drawn(scores, generator):
    """Correct or not: the truth lies 0.3 as far from one half as the score does."""
    return (generator.random(len(scores)) < 0.5 + 0.3 * (scores - 0.5)).astype(int)


generator = np.random.default_rng(0)
scores = generator.random(2000)
labels, order, found = drawn(scores, generator), np.argsort(scores), {}
for strategy in ("uniform", "quantile", "array split"):
    found[strategy] = [
        expected_calibration_error(labels[rows], scores[rows], num_bins=BINS, split_strategy=strategy)
        for rows in (np.arange(2000), order)
    ]
    print(f"{strategy}: in no order {found[strategy][0]:.4f}, sorted {found[strategy][1]:.4f}")
hand = by_hand(labels, scores)
first = [_calc_bins(labels[rows], scores[rows], BINS, "array split")[3][0] / 20 for rows in (np.arange(2000), order)]
print(
    f"array split, by hand from sorted scores {hand:.4f}; items in the first of the {BINS} bins in no order "
    f"{first[0]:.0f} %, sorted {first[1]:.0f} %"
)

classes = generator.integers(0, 10, 2000)  # the class that is predicted, with the same scores as confidence
truth = np.where(labels == 1, classes, (classes + 1) % 10)
top = [
    top_label_ece(truth[rows], scores[rows], classes[rows], num_bins=BINS, split_strategy=strategy)
    for rows, strategy in ((np.arange(2000), "array split"), (order, "array split"), (order, "uniform"))
]
print(f"top_label_ece with array split, ten classes: in no order {top[0]:.4f}, sorted {top[1]:.4f}; uniform {top[2]:.4f}")

assert abs(found["array split"][1] - hand) < 1e-9 and abs(hand - found["quantile"][1]) < 0.02, (found, hand)
assert found["array split"][0] < hand / 4 and top[0] < top[1] / 1.5, (found, top)
assert abs(found["uniform"][0] - found["uniform"][1]) < 1e-9
PYTHON
echo "as stated"

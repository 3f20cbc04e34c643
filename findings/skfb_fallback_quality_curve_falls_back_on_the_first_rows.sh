#!/usr/bin/env bash
# scikit-fallback 0.2.0.post1 (PyPI, classification with a reject option), scikit-learn 1.9.1, numpy 2.4.6.
#
# Expected: fallback_quality_curve(y_true, y_score) gives for each threshold the accuracy on the items whose confidence reaches it
# ("calculate on accepted examples for every fallback threshold"), and fallback_quality_auc_score the area below: higher for
# a model whose confidences tell right answers from wrong ones, whatever row each item stands on.
# Seen: what is compared with the threshold is the sorted list of the thresholds themselves, not the items' confidences. At the
# k-th threshold the first k rows of the file fall back, whatever their confidence. In a file in no order a calibrated
# model is as good as one whose confidences are noise; sorted with the surest rows last it gets its true area, with the
# surest first it seems to reject the right answers. (Two equal confidences end with "Mask size = ... is greater than".)
#
# Output seen on 29 November 2026 (2,000 yes/no questions, confidences 0.5 to 1 that are the probabilities of being right):
#   area in no order 0.702, the surest last 0.819, the surest first 0.611; by the definition 0.819
#   the same answers with random confidences: area 0.702
#   accuracy where half fall back, in no order 0.730, by the definition 0.861
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile numpy==2.4.6 scikit-learn==1.9.1 2>/dev/null
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps scikit-fallback==0.2.0.post1 2>/dev/null
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
from sklearn.metrics import auc
from skfb.metrics import fallback_quality_auc_score, fallback_quality_curve

ITEMS, MOST = 2000, 0.95  # the curve's own largest share that falls back


def two_columns(confidences, answers):
    """Scores of "no" and "yes" whose larger one is the confidence in the answer."""
    scores = np.column_stack([1 - confidences, confidences])
    return np.where(answers[:, None] == 1, scores, scores[:, ::-1])


def by_hand(confidences, right):
    """The area of accuracy over the share that falls back, the least sure first."""
    kept = right[np.argsort(confidences)][::-1]
    accuracy = (np.cumsum(kept) / np.arange(1, ITEMS + 1))[::-1]
    shares = np.arange(ITEMS) / ITEMS
    inside = shares <= MOST
    return auc(shares[inside], accuracy[inside]), accuracy[ITEMS // 2]


generator = np.random.default_rng(0)
confidences, answers = generator.uniform(0.5, 1, ITEMS), generator.integers(0, 2, ITEMS)
right = (generator.random(ITEMS) < confidences).astype(int)
truth, scores = np.where(right == 1, answers, 1 - answers), two_columns(confidences, answers)
order = np.argsort(confidences)
areas = [fallback_quality_auc_score(truth[rows], scores[rows]) for rows in (np.arange(ITEMS), order, order[::-1])]
area, accuracy = by_hand(confidences, right)
print(
    f"area in no order {areas[0]:.3f}, the surest last {areas[1]:.3f}, the surest first {areas[2]:.3f}; "
    f"by the definition {area:.3f}"
)
noise = fallback_quality_auc_score(truth, two_columns(generator.uniform(0.5, 1, ITEMS), answers))
print(f"the same answers with random confidences: area {noise:.3f}")
shares, qualities, _ = fallback_quality_curve(truth, scores)
half = qualities[int(np.argmin(np.abs(np.array(shares) - 0.5)))]
print(f"accuracy where half fall back, in no order {half:.3f}, by the definition {accuracy:.3f}")

assert abs(areas[1] - area) < 1e-3 and area - areas[0] > 0.08 and areas[0] - areas[2] > 0.08, (areas, area)
assert abs(areas[0] - noise) < 1e-9 and abs(half - right.mean()) < 0.03 and accuracy > half + 0.08, (noise, half, accuracy)
PYTHON
echo "as stated"

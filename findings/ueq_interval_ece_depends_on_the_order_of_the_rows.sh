#!/usr/bin/env bash
# ueq 1.0.1 (PyPI, "Uncertainty Everywhere"), numpy 2.4.6, scikit-learn 1.9.1, torch 2.13.0.
#
# Expected: expected_calibration_error(y_true, intervals) and maximum_calibration_error are "for prediction intervals": small for
# intervals that hold what they promise, large for those that don't, and the same in whatever order the rows come.
# Seen: they know neither the promised level (there is no argument for it) nor the widths. The "expected coverage" of a row is
# its place in the table: the first tenth is to be covered in 5 % of the cases, the last in 95 %. So intervals of 90 % that
# cover 90 % have an error of 0.41, those of 50 % that cover 50 % one of 0.25, and those that miss everything 0.50. And sorting
# the rows changes it: the same intervals of 90 % get 0.59 where the far outcomes come last. coverage() is fine.
#
# Output seen on 29 November 2026 (20,000 standard normal outcomes and their central intervals, the same for each row):
#   intervals of 90 %: coverage 0.903, ECE 0.413, MCE 0.854
#   intervals of 90 %, far outcomes first: coverage 0.903, ECE 0.407, MCE 0.850
#   intervals of 90 %, far outcomes last: coverage 0.903, ECE 0.587, MCE 0.950
#   intervals of 50 %: coverage 0.498, ECE 0.250, MCE 0.451
#   intervals of 0.01 %: coverage 0.000, ECE 0.500, MCE 0.950
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 scikit-learn==1.9.1 \
    pandas==3.1.1 matplotlib==3.10.8 2>/dev/null
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps ueq==1.0.1 2>/dev/null
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
from statistics import NormalDist

import numpy as np
from ueq import coverage, expected_calibration_error, maximum_calibration_error

generator = np.random.default_rng(0)
outcomes = generator.standard_normal(20_000)


def measures(name, level, rows):
    """The package's measures of central intervals of this level, for the outcomes in this order."""
    half = NormalDist().inv_cdf(0.5 + level / 2)
    intervals = [(-half, half)] * len(rows)
    found = (coverage(rows, intervals), expected_calibration_error(rows, intervals), maximum_calibration_error(rows, intervals))
    print(f"{name}: coverage {found[0]:.3f}, ECE {found[1]:.3f}, MCE {found[2]:.3f}")
    return found


far = np.argsort(-np.abs(outcomes))
right = measures("intervals of 90 %", 0.9, outcomes)
last = measures("intervals of 90 %, far outcomes first", 0.9, outcomes[far])
first = measures("intervals of 90 %, far outcomes last", 0.9, outcomes[far[::-1]])
half = measures("intervals of 50 %", 0.5, outcomes)
none = measures("intervals of 0.01 %", 0.0001, outcomes)

assert abs(right[0] - 0.9) < 0.01 and abs(half[0] - 0.5) < 0.01, (right, half)
assert right[1] > 0.35 and half[1] > 0.2 and none[1] - right[1] < 0.15, (right, half, none)
assert last[0] == first[0] == right[0] and first[1] - last[1] > 0.1, (first, last)
PYTHON
echo "as stated"

#!/usr/bin/env bash
# iaa-kit 0.1.2 (PyPI, agreement of annotators), numpy 2.4.6, scikit-learn 1.9.1.
#
# Expected: weighted_kappa(a, b, "quadratic") of two judges who rate from 1 to 10 charges a pair of ratings by how far they lie
# apart, as scikit-learn's cohen_kappa_score does: 10 against 9 is a near miss, 10 against 1 the worst there is.
# Seen: the ratings are put in order by their text, 1, 10, 2, ..., 9, so 10 against 1 is the near miss and 10 against 9 the
# worst but one. Two judges who are never more than one apart get 0.71 where scikit-learn has 0.96; one who gives 10 for each 1 of
# the other and 1 for each 10 agrees with him to 0.99, where it is -0.06. Scales up to 9 are right. The
# command line (`iaa-kit analyze`) writes the same number, and ac2, "Gwet AC2", is the weighted kappa once more.
#
# Output seen on 29 November 2026 (400 answers, two judges):
#   1 to 10, at most one apart: quadratic 0.710, scikit-learn 0.965; linear 0.661, scikit-learn 0.819
#   1 to 9, at most one apart: quadratic 0.949, scikit-learn 0.949; linear 0.780, scikit-learn 0.780
#   1 to 10, the best and the worst mark changed over: quadratic 0.987, scikit-learn -0.064; linear 0.934, scikit-learn 0.393
#   ac2, 1 to 10, at most one apart: 0.710
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile numpy==2.4.6 scikit-learn==1.9.1 2>/dev/null
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps iaa-kit==0.1.2 2>/dev/null
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
from iaa_kit import ac2, weighted_kappa
from sklearn.metrics import cohen_kappa_score

generator = np.random.default_rng(0)


def compare(name, first, second):
    """The package's number and scikit-learn's for both weights."""
    pairs = [
        (weighted_kappa(first.tolist(), second.tolist(), weight), cohen_kappa_score(first, second, weights=weight))
        for weight in ("quadratic", "linear")
    ]
    print(
        f"{name}: quadratic {pairs[0][0]:.3f}, scikit-learn {pairs[0][1]:.3f}; linear {pairs[1][0]:.3f}, "
        f"scikit-learn {pairs[1][1]:.3f}"
    )
    return pairs


def near(best):
    """Ratings from 1 to `best`, and a second judge's, at most one apart."""
    ratings = generator.integers(1, best + 1, 400)
    return ratings, np.clip(ratings + generator.integers(-1, 2, 400), 1, best)


ten, nine = near(10), near(9)
close = compare("1 to 10, at most one apart", *ten)
right = compare("1 to 9, at most one apart", *nine)
swapped = np.where(ten[0] == 10, 1, np.where(ten[0] == 1, 10, ten[0]))
opposed = compare("1 to 10, the best and the worst mark changed over", ten[0], swapped)
gwet = ac2(ten[0].tolist(), ten[1].tolist(), "quadratic")
print(f"ac2, 1 to 10, at most one apart: {gwet:.3f}")

assert all(theirs > ours + 0.15 for ours, theirs in close), close
assert all(abs(theirs - ours) < 1e-9 for ours, theirs in right), right
assert all(ours > theirs + 0.1 for ours, theirs in opposed), opposed
assert gwet == close[0][0]
PYTHON
echo "as stated"

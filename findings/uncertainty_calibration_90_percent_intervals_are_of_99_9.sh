#!/usr/bin/env bash
# uncertainty-calibration 0.1.4 (PyPI, the package of "Verified Uncertainty Calibration", arXiv 1909.10155), numpy 2.4.6.
#
# Expected: get_calibration_error_uncertainties(probs, labels, alpha=0.1), its default, gives a 90 % interval: its docstring
# says "1-alpha confidence intervals produced by bootstrap resampling".
# Seen: alpha is a fraction there, and a percentage in the function that it is handed to: 0.1 means 99.9 %. Of the 100
# resamples it takes, the "90 %" interval spans the smallest to the largest, 1.4 times as wide as the 90 % interval of the
# same resamples, and "50 %" (alpha=0.5) is hardly narrower. Two models whose errors differ clearly look alike. With
# alpha=10 the result is what alpha=0.1 promises.
#
# Output seen (1,000 predictions of an overconfident binary model, the same resamples each time):
#   ECE 0.079; alpha=0.1: 0.039 to 0.093; alpha=0.5: 0.039 to 0.093; all resamples: 0.039 to 0.093
#   alpha=10: 0.048 to 0.088; the width of alpha=0.1 is 1.4 times that
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile numpy==2.4.6 scikit-learn==1.9.1 2>/dev/null
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps uncertainty-calibration==0.1.4
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import calibration
import numpy as np

generator = np.random.default_rng(0)
probs = generator.uniform(0.5, 1, 1000)
labels = (generator.random(1000) < probs**1.5).astype(int)


def interval(alpha):
    np.random.seed(0)  # the package draws its resamples from the global generator
    low, _, high = calibration.get_calibration_error_uncertainties(probs, labels, p=1, alpha=alpha)
    return float(low), float(high)


tenth, half, ten, everything = interval(0.1), interval(0.5), interval(10), interval(0)
error = calibration.get_calibration_error(probs, labels, p=1, debias=False)
wider = (tenth[1] - tenth[0]) / (ten[1] - ten[0])
print(
    f"ECE {error:.3f}; alpha=0.1: {tenth[0]:.3f} to {tenth[1]:.3f}; alpha=0.5: {half[0]:.3f} to {half[1]:.3f}; "
    f"all resamples: {everything[0]:.3f} to {everything[1]:.3f}"
)
print(f"alpha=10: {ten[0]:.3f} to {ten[1]:.3f}; the width of alpha=0.1 is {wider:.2g} times that")
assert "1-alpha confidence intervals" in calibration.get_calibration_error_uncertainties.__doc__
assert np.allclose(tenth, everything, atol=2e-3) and np.allclose(half, everything, atol=4e-3)
assert wider > 1.25, wider
PYTHON
echo "as stated"

#!/usr/bin/env bash
# probmetrics 1.3.0 (PyPI, calibration and refinement of proper losses), torch 2.13.0.
#
# Expected: for yes/no predictions "calib-err_proper-L1-binary-as-1d", "-L2-" and "-Linf-" are one number, the mean distance
# between the probability of yes and its calibrated one: with a single coordinate every p-norm is its absolute value.
# Seen: 0.149, 0.024 and 0.000 for a model that says 3z where the truth is z; "Linf" calls it perfectly calibrated.
# ProperLpLoss cuts the prediction and the label to the column of yes and leaves the centre f(x) with both columns, so that
# [n, 1] - [n, 2] broadcasts: the norm is over two differences, one of them between yes and no. With both columns kept
# (binary_as_multiclass=True) the three are 0.298, 0.211 and 0.149, as they should be.
#
# Output seen (20,000 items, calibrated by temperature scaling on all of them):
#   distance to the true probability 0.149
#   L1 0.149, L2 0.024, Linf 0.000
#   with both columns: L1 0.298, L2 0.211, Linf 0.149
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1 numba==0.68.1 \
    pandas==3.1.1 2>/dev/null
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps probmetrics==1.3.0 pytorch-minimize==0.1.0 torchmetrics==1.9.0 \
    lightning-utilities==0.15.3 packaging==26.4 2>/dev/null
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from probmetrics.calibrators import get_calibrator
from probmetrics.distributions import CategoricalDirac, CategoricalProbs
from probmetrics.metrics import Metrics, MetricsWithCalibration, ProperLpLoss
from probmetrics.splitters import AllSplitter

generator = torch.Generator().manual_seed(0)
z = 1.5 * torch.randn(20000, generator=generator)
truth, says = torch.sigmoid(z), torch.sigmoid(3 * z)
labels = torch.bernoulli(truth, generator=generator).long()
probabilities = torch.stack([1 - says, says], dim=1)
distance = (says - truth).abs().mean()
print(f"distance to the true probability {distance:.3f}")


def binary(norm):
    name = f"calib-err_proper-L{norm}-binary-as-1d_ts-mix_all"
    return float(Metrics.from_names([name]).compute_all_from_labels_probs(labels, probabilities)[name])


def both(norm):
    loss = ProperLpLoss(p=float(norm), binary_as_multiclass=True)
    calibrator = get_calibrator("temp-scaling", calibrate_with_mixture=True)
    metric = MetricsWithCalibration(loss, calibrator, val_splitter=AllSplitter(), cal_name="ts", random_state=0)
    found = metric.compute_all(CategoricalDirac(labels, n_classes=2), CategoricalProbs(probabilities))
    return float(found[f"calib-err_proper-L{norm}_ts_all"])


one, two = ({norm: of(norm) for norm in ("1", "2", "inf")} for of in (binary, both))
print(", ".join(f"L{norm} {value:.3f}" for norm, value in one.items()))
print("with both columns: " + ", ".join(f"L{norm} {value:.3f}" for norm, value in two.items()))
assert abs(one["1"] - distance) < 0.01 and one["2"] < 0.2 * one["1"] and abs(one["inf"]) < 0.001, one
assert abs(two["inf"] - distance) < 0.01 and abs(two["2"] - two["1"] / 2**0.5) < 0.01, two
PYTHON
echo "as stated"

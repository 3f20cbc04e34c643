#!/usr/bin/env bash
# probmetrics 1.3.0 (PyPI), against torchmetrics 1.9.0, which computes its ECE, torch 2.13.0.
#
# Expected: "ece-15" is the expected calibration error of the predictions. A model that gives a third of its mass to an
# option that never is right is overconfident: confidence minus accuracy is 0.175.
# Seen: 0.013. Options that no label of the test set names are taken out and the rest of each row is rescaled to 1 (a help for
# AUROC, for which it was written), so the metric scores other predictions than those it got; "smece" beside it, "logloss" and
# "brier" take them as they are, and so does torchmetrics. Small test sets with many options always lack some: for right
# probabilities of 30 items with 20 options the ECE is 0.150 where torchmetrics has 0.130.
#
# Output seen (5,000 items; 30 items, the mean of 200 draws):
#   3 options, 2 of them seen: confidence - accuracy 0.175, ece-15 0.013, torchmetrics 0.176
#   10 options, 5 of them seen: confidence - accuracy 0.165, ece-15 0.014, torchmetrics 0.165
#   30 items, 20 options, right probabilities: ece-15 0.150, torchmetrics 0.130
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
from probmetrics.metrics import Metrics
from torchmetrics.functional import calibration_error


def eces(probabilities, labels):
    own = float(Metrics.from_names(["ece-15"]).compute_all_from_labels_probs(labels, probabilities)["ece-15"])
    options = probabilities.shape[1]
    return own, float(calibration_error(probabilities, labels, task="multiclass", num_classes=options, n_bins=15))


for options, seen in ((3, 2), (10, 5)):
    torch.manual_seed(0)
    probabilities = torch.softmax(2 * torch.randn(5000, options), dim=1)
    labels = torch.multinomial(probabilities[:, :seen], 1).squeeze(1)
    own, plain = eces(probabilities, labels)
    confidence, answers = probabilities.max(dim=1)
    gap = float(confidence.mean() - (answers == labels).float().mean())
    print(f"{options} options, {seen} of them seen: confidence - accuracy {gap:.3f}, ece-15 {own:.3f}, torchmetrics {plain:.3f}")
    assert gap > 0.15 and abs(plain - gap) < 0.01 and own < 0.03, (gap, plain, own)
pairs = []
for seed in range(200):
    torch.manual_seed(seed)
    probabilities = torch.softmax(torch.randn(30, 20), dim=1)
    pairs.append(eces(probabilities, torch.multinomial(probabilities, 1).squeeze(1)))
own, plain = torch.tensor(pairs).mean(dim=0).tolist()
print(f"30 items, 20 options, right probabilities: ece-15 {own:.3f}, torchmetrics {plain:.3f}")
assert own > plain + 0.01, (own, plain)
PYTHON
echo "as stated"

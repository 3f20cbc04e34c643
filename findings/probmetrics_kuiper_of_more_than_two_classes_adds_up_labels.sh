#!/usr/bin/env bash
# probmetrics 1.3.0 (PyPI), torch 2.13.0.
#
# Expected: "kuiper", a calibration metric among those for classification, is near 0 for right probabilities and at most 1, or
# refuses more than two classes, as "smece" beside it reduces them to confidence and correctness.
# Seen: for three or more classes it adds up the labels' numbers (0, 1, 2, ...) and takes the second class's probabilities from
# them. Right probabilities get 1.005 with three classes and 2.519 with five, and the same predictions with their
# classes numbered the other way round 0.328 and 1.079, so the metric ranks models by how their classes are numbered.
#
# Output seen (20,000 items whose labels are drawn from their own probabilities):
#   2 classes: kuiper 0.005, numbered the other way round 0.005
#   3 classes: kuiper 1.005, numbered the other way round 0.328
#   5 classes: kuiper 2.519, numbered the other way round 1.079
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1 numba==0.68.1 \
    pandas==3.1.1 2>/dev/null
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps probmetrics==1.3.0 pytorch-minimize==0.1.0 torchmetrics==1.9.0 \
    lightning-utilities==0.15.3 packaging==26.4 2>/dev/null
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from probmetrics.metrics import Metrics


def kuiper(labels, probabilities):
    return float(Metrics.from_names(["kuiper"]).compute_all_from_labels_probs(labels, probabilities)["kuiper"])


seen = {}
for classes in (2, 3, 5):
    torch.manual_seed(0)
    weights = torch.arange(1.0, classes + 1)
    probabilities = torch.distributions.Dirichlet(weights).sample((20000,))
    labels = torch.multinomial(probabilities, 1).squeeze(1)
    seen[classes] = kuiper(labels, probabilities), kuiper(classes - 1 - labels, probabilities.flip(dims=[1]))
    print(f"{classes} classes: kuiper {seen[classes][0]:.3f}, numbered the other way round {seen[classes][1]:.3f}")
assert max(seen[2]) < 0.02 and min(seen[3] + seen[5]) > 0.2 and abs(seen[5][0] - seen[5][1]) > 0.5, seen
PYTHON
echo "as stated"

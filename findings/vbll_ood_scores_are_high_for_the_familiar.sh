#!/usr/bin/env bash
# vbll 0.4.9 (PyPI, variational Bayesian last layers, arXiv 2404.11599), torch 2.13.0.
#
# Expected: with return_ood=True the output's `ood_scores` are high for inputs that are unlike the training's, as OOD scores
# are read (scikit-learn's roc_auc_score with outside = 1), and belong to the probabilities in the same output.
# Seen: they are the largest probability, so high means familiar: the AUROC of outside inputs is far below one half. And they are
# drawn anew (20 draws each): the score of an item is not the maximum of `predictive.probs` beside it, and calling the model
# again gives a third one, also in eval mode.
#
# Output seen (three classes learned from clusters, 500 inputs from between them):
#   AUROC of ood_scores 0.045, of 1 - ood_scores 0.955
#   largest distance to the maximum of predictive.probs 0.143, to the scores of a second call 0.149
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 scikit-learn==1.9.1 2>/dev/null
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps vbll==0.4.9 2>/dev/null
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
import vbll
from sklearn.metrics import roc_auc_score

torch.manual_seed(0)
centres = 4 * torch.eye(3, 16)
labels = torch.randint(3, (600,))
inputs = centres[labels] + torch.randn(600, 16)
model = torch.nn.Sequential(
    torch.nn.Linear(16, 32), torch.nn.ReLU(), vbll.DiscClassification(32, 3, 1 / 600, "diagonal", return_ood=True)
)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
for _ in range(300):
    optimizer.zero_grad()
    model(inputs).train_loss_fn(labels).backward()
    optimizer.step()
model.eval()
home = centres[torch.randint(3, (500,))] + torch.randn(500, 16)
outside = centres.mean(dim=0) + torch.randn(500, 16)
with torch.no_grad():
    found, again = model(torch.cat([home, outside])), model(torch.cat([home, outside]))
target = [0] * 500 + [1] * 500
auroc = roc_auc_score(target, found.ood_scores)
largest = found.predictive.probs.max(dim=-1).values
apart, anew = (largest - found.ood_scores).abs().max(), (again.ood_scores - found.ood_scores).abs().max()
print(f"AUROC of ood_scores {auroc:.3f}, of 1 - ood_scores {roc_auc_score(target, 1 - found.ood_scores):.3f}")
print(f"largest distance to the maximum of predictive.probs {apart:.3f}, to the scores of a second call {anew:.3f}")
assert auroc < 0.2 and apart > 0.05 and anew > 0.05, (auroc, apart, anew)
PYTHON
echo "as stated"

#!/usr/bin/env bash
# pyrelational 1.0.2 (PyPI, active learning), torch 2.13.0, numpy 1.26.4.
#
# Expected: regression_thompson_sampling scores each item of the pool with one draw of ITS OWN predictive, one of the members that
# predicted it, and ThompsonSamplingStrategy labels the items of the highest draws: the promising and the unsure.
# Seen: with its default axis=0, members by items, as the strategy calls it, the draw's number is the item's but its column is
# always 0: every score is a draw of the first item's predictive. The ranking of the pool is a shuffle, whatever the model
# says, and the scores change when another item stands first. With axis=1, items by members, it is right.
#
# Output seen on 29 November 2026 (1,000 items whose values are standard normal, 50 members that are off by 0.3, 20 chosen):
#   axis=0: rank correlation with the predicted means 0.08; mean value of the chosen 0.01; scores that are draws of the first
#       item 100 %
#   axis=0, members by items by one output: rank correlation with the predicted means -0.03; mean value of the chosen -0.36;
#       scores that are draws of the first item 100 %
#   axis=1: rank correlation with the predicted means 0.96; mean value of the chosen 2.68; scores that are draws of the first
#       item 0 %
#   by hand: rank correlation with the predicted means 0.95; mean value of the chosen 2.65; scores that are draws of the first
#       item 0 %
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==1.26.4 scikit-learn==1.4.2 2>/dev/null
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps pyrelational==1.0.2 2>/dev/null
# the package's own start imports lightning for parts that are not used here
: > "$(echo "$folder"/venv/lib/python*/site-packages/pyrelational/__init__.py)"
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from pyrelational.informativeness import regression_thompson_sampling
from scipy.stats import spearmanr

ITEMS, MEMBERS, CHOSEN = 1000, 50, 20
torch.manual_seed(0)
values = torch.randn(ITEMS)
predictions = values + 0.3 * torch.randn(MEMBERS, ITEMS)


def judge(name, scores):
    """How well the scores follow the predicted means, and what the items of the highest scores are worth."""
    correlation = spearmanr(scores, predictions.mean(dim=0)).statistic
    worth = values[scores.argsort(descending=True)[:CHOSEN]].mean().item()
    first = torch.isin(scores, predictions[:, 0]).float().mean().item()
    print(
        f"{name}: rank correlation with the predicted means {correlation:.2f}; mean value of the chosen {worth:.2f}; "
        f"scores that are draws of the first item {100 * first:.0f} %"
    )
    return correlation, worth, first


default = judge("axis=0", regression_thompson_sampling(predictions))
layers = judge("axis=0, members by items by one output", regression_thompson_sampling(predictions[..., None]).reshape(-1))
right = judge("axis=1", regression_thompson_sampling(predictions.T, axis=1))
hand = judge("by hand", predictions[torch.randint(MEMBERS, (ITEMS,)), torch.arange(ITEMS)])

for correlation, worth, first in (default, layers):
    assert abs(correlation) < 0.15 and worth < 1 and first == 1, (correlation, worth, first)
for correlation, worth, first in (right, hand):
    assert correlation > 0.9 and worth > 1.8 and first < 0.1, (correlation, worth, first)
PYTHON
echo "as stated"

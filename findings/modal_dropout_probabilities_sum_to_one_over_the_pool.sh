#!/usr/bin/env bash
# modAL-python 0.4.2.1 (PyPI, active learning), skorch 1.4.0, torch 2.13.0, numpy 2.4.6.
#
# Expected: mc_dropout_bald, _max_entropy, _max_variationRatios and _mean_st of modAL.dropout turn the logits of each item, in each pass
# with dropout, into probabilities of its classes, which sum to one, and measure how these vary (Gal et al. 2017).
# Seen: get_predictions writes prediction[mask].softmax(-1), and the boolean mask makes one long vector of items and classes: the
# softmax runs over the whole pool (up to sample_per_forward_pass=1000 items at once). With 200 items of 3 classes the
# "probabilities" of an item sum to 0.005 on average and to 0.71 for the one of the largest logits. The 20 items chosen by
# BALD are no better than any 20; a constant added to all logits of the surest item, which changes no probability,
# makes it the first to be labelled. sample_per_forward_pass=1 avoids it.
#
# Output seen (200 items, 3 classes, a network with dropout 0.5, 50 passes):
#   the pool at once, the default: an item's probabilities sum to 0.000 to 0.709, mean 0.005; BALD of the 20 chosen 0.33,
#       rank correlation with BALD 0.19
#   one item at a time: an item's probabilities sum to 1.000 to 1.000, mean 1.000; BALD of the 20 chosen 0.61,
#       rank correlation with BALD 1.00
#   largest BALD of 20 items 0.61, of all 0.35
#   all logits of the item of smallest BALD (number 105) raised by 30: item 105 is chosen
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1 pandas==3.1.1 \
    tqdm==4.70.1 2>/dev/null
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps modAL-python==0.4.2.1 skorch==1.4.0 tabulate==0.10.0 2>/dev/null
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
from types import SimpleNamespace

import numpy as np
import torch
from modAL.dropout import get_predictions, mc_dropout_bald
from scipy.special import entr
from scipy.stats import spearmanr
from skorch import NeuralNetClassifier
from torch import nn

ITEMS, TOP = 200, 20
torch.manual_seed(0)
network = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 3))
for layer in (network[0], network[3]):
    nn.init.normal_(layer.weight, std=0.5)
pool = torch.randn(ITEMS, 8)
classifier = NeuralNetClassifier(network, criterion=nn.CrossEntropyLoss, train_split=None).initialize()
classifier.module_.eval()
learner = SimpleNamespace(estimator=classifier)


def bald():
    """The mutual information of label and dropout mask, with the same masks (the same seed) as modAL's passes."""
    torch.manual_seed(1)
    network.train()
    with torch.no_grad():
        probs = torch.stack([network(pool).softmax(-1) for _ in range(50)]).double().numpy()
    network.eval()
    return entr(probs.mean(0)).sum(-1) - entr(probs).sum(-1).mean(0)


def scores(at_once):
    """The indices in modAL's order, and the score of each item."""
    torch.manual_seed(1)
    order, values = mc_dropout_bald(learner, pool, n_instances=ITEMS, sample_per_forward_pass=at_once)
    return order, values[np.argsort(order)]


def sums(at_once):
    """What the probabilities of each item add up to."""
    return get_predictions(learner, pool, num_predictions=1, sample_per_forward_pass=at_once)[0].sum(axis=1)


right = bald()
seen = {}
for name, at_once in (("the pool at once, the default", 1000), ("one item at a time", 1)):
    order, values = scores(at_once)
    totals, chosen = sums(at_once), order[np.argsort(-values[order])][:TOP]
    seen[at_once] = totals, right[chosen].mean(), spearmanr(values, right).statistic
    print(
        f"{name}: an item's probabilities sum to {totals.min():.3f} to {totals.max():.3f}, mean {totals.mean():.3f}; "
        f"BALD of the {TOP} chosen {seen[at_once][1]:.2f}, rank correlation with BALD {seen[at_once][2]:.2f}"
    )
best = np.sort(right)[-TOP:].mean()
print(f"largest BALD of {TOP} items {best:.2f}, of all {right.mean():.2f}")
assert abs(seen[1000][0].sum() - 1) < 1e-4 and seen[1000][2] < 0.8 and seen[1000][1] < 0.8 * best, seen[1000][1:]
assert np.allclose(seen[1][0], 1, atol=1e-5) and seen[1][2] > 0.95 and seen[1][1] > 0.95 * best, seen[1][1:]

surest = int(right.argmin())
shift = 30.0 * (torch.arange(ITEMS) == surest)[:, None]
first = mc_dropout_bald(learner, pool, logits_adaptor=lambda logits, items: logits + shift)[0]
print(f"all logits of the item of smallest BALD (number {surest}) raised by 30: item {first[0]} is chosen")
assert first[0] == surest, (first, surest)
PYTHON
echo "as stated"

#!/usr/bin/env bash
# baal 2.1.0 (PyPI, Bayesian active learning), torch 2.13.0, numpy 2.4.6.
#
# Expected: BatchBALD (Kirsch et al. 2019) starts with the item of largest mutual information (BALD) and adds the one that
# raises the joint information most, until the batch is full. BatchBALD(num_samples=1) is BALD, and the first num_samples of
# get_ranks, which is what ActiveLearningLoop sends to be labelled (query_size), are the batch.
# Seen: the item of largest BALD is in no batch of any size. It chooses num_samples + 1 items and scores each with the
# information of the batch up to it, which grows: the first choice has the smallest score of the chosen ones, ranks last of
# num_samples + 1, and is cut off. For one label at a time it labels the second best, for three, three without the best.
#
# Output seen (20 pools of 50 items, 4 classes, 20 members):
#   batches of 1 with the item of largest BALD: 0 of 20; it ranks as number 2 in 20 of 20
#   batches of 3 with the item of largest BALD: 0 of 20; it ranks as number 4 in 20 of 20
#   mutual information of the batch of 1: 0.798, of the best item: 0.857 (means of 20)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1 structlog==22.3.0 \
    tqdm==4.70.1 pillow==13.0.0 packaging==26.4 2>/dev/null
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps baal==2.1.0 torchmetrics==1.9.0 lightning-utilities==0.15.3 2>/dev/null
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
import torch
from baal.active.heuristics import BALD, BatchBALD
from scipy.special import softmax

POOLS = 20
generator = np.random.default_rng(0)
torch.manual_seed(0)  # the draws of BatchBALD


def a_pool():
    """Probabilities of members that disagree more on some items than on others, [items, classes, members]."""
    return softmax(generator.normal(size=(50, 4, 20)) * generator.uniform(0, 3, size=(50, 1, 1)), axis=1)


places = {1: [], 3: []}
labelled, largest = [], []
for _ in range(POOLS):
    probs = a_pool()
    information = BALD().get_uncertainties(probs)
    best = int(information.argmax())
    largest.append(information[best])
    for size, found in places.items():
        ranks, _ = BatchBALD(size, num_draw=2000).get_ranks(probs)
        found.append(list(ranks).index(best) + 1)
        if size == 1:
            labelled.append(information[ranks[0]])
for size, found in places.items():
    inside, behind = sum(place <= size for place in found), sum(place == size + 1 for place in found)
    print(
        f"batches of {size} with the item of largest BALD: {inside} of {POOLS}; "
        f"it ranks as number {size + 1} in {behind} of {POOLS}"
    )
    assert inside == 0 and behind == POOLS, found
print(f"mutual information of the batch of 1: {np.mean(labelled):.3f}, of the best item: {np.mean(largest):.3f} (means of {POOLS})")
assert all(one < most for one, most in zip(labelled, largest))
PYTHON
echo "as stated"

#!/usr/bin/env bash
# torchcp 1.2.1 (PyPI), torch 2.13.0, scikit-learn 1.9.1.
#
# Expected: WSC, the worst-slice coverage of Romano et al. (2020), is low for prediction sets that fail in one region: it
# looks on a part of the data for the slab of features with the lowest coverage, and gives that slab's coverage on the rest.
# Seen: WSC hands the coverage and the labels to its search in the wrong order. What is searched is the slab with the lowest
# mean class number; with classes 0 to 3 no slab has a mean below 1, so the "worst slice" is everything, and the number is the
# marginal coverage. Sets that cover half of the items beyond one standard deviation of the first feature, and all others,
# get a worst-slice coverage of 0.93. The package's own search, called with its arguments in order, finds 0.57.
#
# Output seen:
#   marginal coverage 0.928, where the first feature is above 1: 0.507
#   WSC 0.934; the same with its search given (features, labels, coverage): 0.570
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 scikit-learn==1.9.1 tqdm==4.70.1 2>/dev/null
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps torchcp==1.2.1
# parts that are not used here import these
echo "soft_rank = soft_sort = None" > "$folder/torchsort.py"
(cd "$folder"/venv/lib/python*/site-packages/torchcp && sed -i "/import graph\|import llm/d" __init__.py)
PYTHONPATH="$folder" "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from sklearn.model_selection import train_test_split
from torchcp.classification.utils import metrics

ROWS, CLASSES, SETTINGS = 2000, 4, {"delta": 0.1, "M": 100, "random_state": 2020, "verbose": False}

generator = torch.Generator().manual_seed(0)
features = torch.randn(ROWS, 2, generator=generator)
labels = torch.randint(CLASSES, (ROWS,), generator=generator)
sets = torch.ones(ROWS, CLASSES, dtype=torch.bool)
region = features[:, 0] > 1
missed = region & (torch.rand(ROWS, generator=generator) < 0.5)
sets[missed, labels[missed]] = False

covered = sets[torch.arange(ROWS), labels]
marginal, inside = covered.float().mean().item(), covered[region].float().mean().item()
worst = metrics.Metrics()("WSC")(features, sets, labels, **SETTINGS)

# what WSC does, with the search's arguments in the order of its signature
train, test, y_train, y_test, covered_train, covered_test = train_test_split(
    features.numpy(), labels.numpy(), covered.numpy(), test_size=0.75, random_state=2020
)
_, direction, low, high = metrics.calWSC(train, y_train, covered_train, **SETTINGS)
in_order = metrics.wsc_vab(test, y_test, covered_test, direction, low, high)

print(f"marginal coverage {marginal:.3f}, where the first feature is above 1: {inside:.3f}")
print(f"WSC {worst:.3f}; the same with its search given (features, labels, coverage): {in_order:.3f}")
assert inside < 0.6 and in_order < 0.7 and abs(worst - marginal) < 0.02, (marginal, inside, worst, in_order)
PYTHON
echo "as stated"

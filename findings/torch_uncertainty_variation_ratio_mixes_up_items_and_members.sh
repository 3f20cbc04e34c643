#!/usr/bin/env bash
# torch-uncertainty 0.13.0 (PyPI), torch 2.13.0.
#
# Expected: the docstring of VariationRatio takes probabilities of shape (B, N, C), B items by N members of an ensemble, as
# Disagreement, Entropy and MutualInformation of the same folder do, and returns one value per item (reduction="none"): with
# probabilistic=False the share of members that do not vote for the class of the average (Freeman, 1965).
# Seen: it swaps the first two axes and takes the members for the items: there are N values, and each measures how far different
# items are from having the same class. An ensemble whose members are equal, so that nothing varies, gets a ratio of 0.5
# where half of the items belong to either class; one whose members split evenly on each item gets 0. The docstring's own
# example ("Example 1, 3 estimators ...") prints 0.45, which holds for 3 items and 2 members; as labelled it is 0.35.
#
# Output seen (4 items, 6 members, classes by turns):
#   members agree on every item: 6 values, mean 0.50; by the definition 4 values, mean 0.00; Disagreement 0.00
#   members split on every item: 6 values, mean 0.00; by the definition 4 values, mean 0.50; Disagreement 0.60
#   the docstring's example: 0.45; by the definition 0.35
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 torchmetrics==1.9.0 2>/dev/null
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps torch-uncertainty==0.13.0 2>/dev/null
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.util
import sysconfig
from pathlib import Path

import torch

# The package itself imports lightning, timm and more; the files of these two metrics need torchmetrics alone.
PLACE = Path(sysconfig.get_path("purelib")) / "torch_uncertainty/metrics/classification"


def from_file(name):
    """A module of the package by itself."""
    spec = importlib.util.spec_from_file_location(name, PLACE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


Disagreement = from_file("disagreement").Disagreement
VariationRatio = from_file("variation_ratio").VariationRatio

ITEMS, MEMBERS = 4, 6


def by_definition(probs, probabilistic):
    """One value per item, of probabilities [items, members, classes]."""
    chosen = probs.mean(dim=1).argmax(dim=-1)
    if probabilistic:
        return 1 - probs.mean(dim=1)[torch.arange(len(probs)), chosen]
    return (probs.argmax(dim=-1) != chosen[:, None]).float().mean(dim=1)


def measured(metric, probs):
    """What the metric makes of one batch."""
    metric.update(probs)
    return metric.compute()


one, other = torch.tensor([0.9, 0.1]), torch.tensor([0.2, 0.8])
agree = torch.stack([torch.stack([(one, other)[item % 2]] * MEMBERS) for item in range(ITEMS)])
split = torch.stack([torch.stack([(one, other)[member % 2] for member in range(MEMBERS)])] * ITEMS)
seen = {}
for name, probs in (("agree", agree), ("split", split)):
    found, right = measured(VariationRatio(probabilistic=False, reduction="none"), probs), by_definition(probs, False)
    pairs = measured(Disagreement(), probs)
    seen[name] = (len(found), found.mean().item(), right.mean().item(), pairs.item())
    print(
        f"members {name} on every item: {len(found)} values, mean {found.mean():.2f}; "
        f"by the definition {len(right)} values, mean {right.mean():.2f}; Disagreement {pairs:.2f}"
    )
example = torch.tensor([[[0.7, 0.3], [0.6, 0.4], [0.8, 0.2]], [[0.4, 0.6], [0.5, 0.5], [0.3, 0.7]]])
printed, labelled = measured(VariationRatio(), example).item(), by_definition(example, True).mean().item()
print(f"the docstring's example: {printed:.2f}; by the definition {labelled:.2f}")

assert "(B, N, C)" in VariationRatio.__init__.__doc__
assert seen["agree"][:2] == (MEMBERS, 0.5) and seen["agree"][2:] == (0, 0), seen
assert seen["split"][:2] == (MEMBERS, 0) and seen["split"][2] == 0.5 and seen["split"][3] > 0.5, seen
assert abs(printed - 0.45) < 1e-4 and abs(labelled - 0.35) < 1e-4, (printed, labelled)
PYTHON
echo "as stated"

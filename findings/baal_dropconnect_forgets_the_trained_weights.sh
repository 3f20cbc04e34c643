#!/usr/bin/env bash
# baal 2.1.0 (PyPI, Bayesian active learning), torch 2.13.0, numpy 2.4.6.
#
# Expected: MCDropoutConnectModule(model, layers, weight_dropout) and baal.bayesian.weight_drop.patch_module make a trained model
# drop weights when it predicts, as baal.bayesian.dropout.patch_module makes it drop activations: with weight_dropout=0 the
# predictions are those of the model, and unpatch() gives the model back.
# Seen: each layer is replaced by a NEW one of the same size, whose weights are drawn afresh; nothing is copied. A classifier that
# is right on every item is at chance as soon as it is patched, at any rate of dropping, 0 included, and no warning is given. The
# spread of its predictions looks like uncertainty. unpatch() does copy, the fresh weights. A layer without bias gets
# a random one, a convolution of stride 2 one of stride 1.
#
# Output seen (4 classes, a network of two layers, 400 items):
#   trained: accuracy 1.00; activations dropped (dropout.patch_module): 1.00
#   weights dropped at rate 0: accuracy 0.23, unpatched 0.23; with the trained weights put back 1.00
#   Linear(bias=False) has a bias: True; Conv2d(stride=2) has stride (1, 1)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1 structlog==22.3.0 \
    tqdm==4.70.1 pillow==13.0.0 packaging==26.4 2>/dev/null
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps baal==2.1.0 torchmetrics==1.9.0 lightning-utilities==0.15.3 2>/dev/null
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import copy

import torch
from baal.bayesian import dropout, weight_drop
from torch import nn

torch.manual_seed(0)
labels = torch.arange(400) % 4
inputs = 3 * torch.eye(4)[labels].repeat(1, 4) + torch.randn(400, 16)
model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 4))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for _ in range(100):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(inputs), labels).backward()
    optimizer.step()
model.eval()


def accuracy(network):
    """Share of items whose likeliest class, by the mean of 10 predictions, is the label."""
    with torch.no_grad():
        mean = torch.stack([network(inputs).softmax(-1) for _ in range(10)]).mean(0)
    return (mean.argmax(-1) == labels).float().mean().item()


trained = accuracy(model)
activations = accuracy(dropout.patch_module(model, inplace=False))
module = weight_drop.MCDropoutConnectModule(copy.deepcopy(model), layers=["Linear"], weight_dropout=0.0)
weights = accuracy(module)
unpatched = accuracy(module.unpatch().eval())
restored = weight_drop.patch_module(model, ["Linear"], weight_dropout=0.0, inplace=False)
restored.load_state_dict(model.state_dict())
back = accuracy(restored)
print(f"trained: accuracy {trained:.2f}; activations dropped (dropout.patch_module): {activations:.2f}")
print(f"weights dropped at rate 0: accuracy {weights:.2f}, unpatched {unpatched:.2f}; with the trained weights put back {back:.2f}")

plain = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.Linear(4, 4, bias=False))
convolution, linear = weight_drop.patch_module(plain, ["Conv2d", "Linear"], weight_dropout=0.1)
print(f"Linear(bias=False) has a bias: {linear.bias is not None}; Conv2d(stride=2) has stride {convolution.stride}")
assert trained > 0.99 and activations > 0.99 and back == trained
assert weights < 0.6 and unpatched == weights, (weights, unpatched)
assert linear.bias is not None and bool((linear.bias != 0).any()) and convolution.stride == (1, 1)
PYTHON
echo "as stated"

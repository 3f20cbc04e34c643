#!/usr/bin/env bash
# lora-pytorch 0.2.0 (PyPI, LoRA for any torch module), torch 2.13.0.
#
# Expected: LoRA.from_module(model, rank) and "train or predict as usual": the gradients of the adapters are those of the loss.
# Seen: only those of the last layer are. Each wrapped layer computes its frozen part without gradients, and with it the way
# back to the layers below: what reaches them goes through the adapters above alone. Those start at zero, so in the first
# step every layer but the last has a gradient of exactly 0, and later ones that point elsewhere (cosine to the true ones near
# 0). Nothing warns, the loss still falls by what the last layer can do. The README's "will not track gradients from
# the original model" reads like frozen weights; those need requires_grad off, not a cut through the inputs.
#
# Output seen on 29 November 2026 (three linear layers; the target is the model with a change of rank 4 in its first layer; "by
# hand" is the same function of the same adapters, each weight written as frozen weight plus adapter):
#   difference of the outputs from those by hand: 0.0e+00
#   first step, gradients of the three adapters: 0.0000 0.0000 0.0766, by hand 0.0276 0.0516 0.0766
#   loss before 0.0275, after 500 steps 0.0135, by hand 0.0009
#   after that, cosine to the gradients by hand: 0.16 -0.01 1.00
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 2>/dev/null
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps lora-pytorch==0.2.0 2>/dev/null
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import copy

import torch
from lora_pytorch import LoRA
from torch import nn

torch.manual_seed(0)
RANK, STEPS = 4, 500
INPUTS = torch.randn(512, 16)


def by_hand(model, rows=INPUTS):
    """What the model computes, with each weight written as the frozen one plus the adapter's."""
    for layer in model.module:
        if isinstance(layer, LoRA):
            weight = layer.module.weight + (layer.lora_module.in_proj @ layer.lora_module.out_proj).T
            rows = nn.functional.linear(rows, weight, layer.module.bias)
        else:
            rows = layer(rows)
    return rows


def as_shipped(model):
    return model(INPUTS)


def loss(forward, model):
    return (forward(model) - TARGETS).square().mean()


def gradients(forward, model):
    """The gradient of each adapter's second matrix, in the order of the layers; 0 where none arrives."""
    matrices = [layer.lora_module.out_proj for layer in model.module if isinstance(layer, LoRA)]
    found = torch.autograd.grad(loss(forward, model), matrices, allow_unused=True)
    return [torch.zeros_like(matrix) if each is None else each for matrix, each in zip(matrices, found)]


def trained(forward, model):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(forward, model).backward()
        optimizer.step()
    return loss(forward, model).item()


base = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 8))
target = copy.deepcopy(base)
with torch.no_grad():
    target[0].weight += 0.15 * torch.randn(32, RANK) @ torch.randn(RANK, 16)
    TARGETS = target(INPUTS)
model = LoRA.from_module(base, rank=RANK)
twin = copy.deepcopy(model)

apart = (as_shipped(model) - by_hand(model)).abs().max().item()
print(f"difference of the outputs from those by hand: {apart:.1e}")
first = {forward.__name__: [each.norm().item() for each in gradients(forward, model)] for forward in (as_shipped, by_hand)}
shown = {name: " ".join(f"{each:.4f}" for each in norms) for name, norms in first.items()}
print(f"first step, gradients of the three adapters: {shown['as_shipped']}, by hand {shown['by_hand']}")
before = loss(by_hand, model).item()
after, right = trained(as_shipped, model), trained(by_hand, twin)
print(f"loss before {before:.4f}, after {STEPS} steps {after:.4f}, by hand {right:.4f}")
pairs = zip(gradients(as_shipped, model), gradients(by_hand, model))
cosines = [nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0).item() for one, other in pairs]
print("after that, cosine to the gradients by hand: " + " ".join(f"{each:.2f}" for each in cosines))

assert apart < 1e-6, apart
assert first["as_shipped"][:2] == [0, 0] and min(first["by_hand"]) > 0.01, first
assert abs(first["as_shipped"][2] - first["by_hand"][2]) < 1e-5, first
assert after > 5 * right and max(cosines[:2]) < 0.6 and cosines[2] > 0.999, (after, right, cosines)
PYTHON
echo "as stated"

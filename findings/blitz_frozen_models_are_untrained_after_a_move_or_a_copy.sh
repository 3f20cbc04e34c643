#!/usr/bin/env bash
# blitz-bayesian-pytorch 0.2.8 (PyPI), torch 2.13.0.
#
# Expected: freeze_() makes a trained model predict with the means of its weights, on whatever device or dtype it was trained.
# Seen: each BayesianLinear holds its mean twice, as weight_mu and as weight_sampler.mu, two Parameters over one storage
# (parameters() counts 388 numbers in a model of 194). Training moves the sampler's; freezing reads the other. Any step that
# gives each Parameter a storage of its own parts them: .double(), .half(), copy.deepcopy, and .to() of another device. The
# usual `Net().to(device)`, training, `freeze_()` then predicts with the weights of the start, without a word, while the
# sampled predictions of the same model are right.
#
# Output seen (a net of 194 weights and their spreads learns sin(2x), whose variance is 0.44):
#   as built: squared error 0.0003 sampled, 0.0003 frozen
#   after .double(): squared error 0.0014 sampled, 0.4308 frozen
#   after copy.deepcopy: squared error 0.0003 sampled, 0.4308 frozen
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 2>/dev/null
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps blitz-bayesian-pytorch==0.2.8
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import copy

import torch
from blitz.modules import BayesianLinear
from blitz.utils import variational_estimator
from torch import nn
from torch.nn.functional import mse_loss


@variational_estimator
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.out = BayesianLinear(1, 32), BayesianLinear(32, 1)

    def forward(self, inputs):
        return self.out(torch.tanh(self.hidden(inputs)))


def errors(move):
    """Squared errors of a net that was moved before its training: over 50 draws' mean, and frozen."""
    torch.manual_seed(0)
    net = move(Net())
    inputs = torch.linspace(-2, 2, 200)[:, None].to(next(net.parameters()).dtype)
    targets = torch.sin(2 * inputs)
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(600):
        optimizer.zero_grad()
        net.sample_elbo(inputs, targets, mse_loss, sample_nbr=1, complexity_cost_weight=1e-6).backward()
        optimizer.step()
    with torch.no_grad():
        sampled = torch.stack([net(inputs) for _ in range(50)]).mean(0)
        net.freeze_()
        return mse_loss(sampled, targets).item(), mse_loss(net(inputs), targets).item()


numbers = sum(value.numel() for value in Net().parameters())
print(f"parameters() counts {numbers}")
for name, move in (("as built", lambda net: net), ("after .double()", nn.Module.double), ("after copy.deepcopy", copy.deepcopy)):
    sampled, frozen = errors(move)
    print(f"{name}: squared error {sampled:.4f} sampled, {frozen:.4f} frozen")
    assert sampled < 0.02 and (frozen < 0.02 if name == "as built" else frozen > 0.3), (sampled, frozen)
assert numbers == 2 * 194
PYTHON
echo "as stated"

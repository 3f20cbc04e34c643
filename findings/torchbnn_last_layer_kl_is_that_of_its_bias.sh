#!/usr/bin/env bash
# torchbnn 1.2 (PyPI), torch 2.13.0.
#
# Expected: BKLLoss(reduction="mean", last_layer_only=True) is the last layer's KL divergence per element, which draws its
# means and standard deviations to the prior ("True for return only the last layer's KL divergence").
# Seen: it is the KL of the last tensor that was visited, the layer's bias: its weights get no gradient at all (their KL, 45 times
# as large, is left out), and the reduction is not applied: "mean" and "sum" are the same number. A last layer without a bias
# gives its weights' KL, not reduced, so the same loss weight means another strength by a factor of their number.
#
# Output seen (a layer of 64 inputs and 4 outputs, prior N(0, 0.1^2)):
#   weights 65.35, bias 1.45, mean 0.26: last_layer_only, mean 1.45, sum 1.45
#   gradient of the weights: None
#   without a bias: weights 65.35, mean 0.26: last_layer_only, mean 65.35, sum 65.35
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 2>/dev/null
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps torchbnn==1.2 2>/dev/null
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
import torchbnn


def kl(mean, log_std, layer):
    prior = torch.distributions.Normal(layer.prior_mu, 0.1)
    return torch.distributions.kl_divergence(torch.distributions.Normal(mean, log_std.exp()), prior).sum().item()


def losses(model):
    return [torchbnn.BKLLoss(reduction=name, last_layer_only=True)(model) for name in ("mean", "sum")]


for bias in (True, False):
    torch.manual_seed(0)
    layer = torchbnn.BayesLinear(prior_mu=0, prior_sigma=0.1, in_features=64, out_features=4, bias=bias)
    model = torch.nn.Sequential(torchbnn.BayesLinear(prior_mu=0, prior_sigma=0.1, in_features=8, out_features=64), layer)
    weights = kl(layer.weight_mu, layer.weight_log_sigma, layer)
    rest = kl(layer.bias_mu, layer.bias_log_sigma, layer) if bias else 0.0
    expected = (weights + rest) / (260 if bias else 256)
    mean, total = losses(model)
    parts = f"weights {weights:.2f}, bias {rest:.2f}, mean {expected:.2f}" if bias else f"weights {weights:.2f}, mean {expected:.2f}"
    print(f"{'' if bias else 'without a bias: '}{parts}: last_layer_only, mean {mean.item():.2f}, sum {total.item():.2f}")
    assert abs(mean.item() - (rest if bias else weights)) < 1e-3 and mean.item() == total.item() > 3 * expected
    gradient = torch.autograd.grad(mean.sum(), layer.weight_mu, allow_unused=True)[0]
    if bias:
        print("gradient of the weights:", gradient)
        assert gradient is None
PYTHON
echo "as stated"

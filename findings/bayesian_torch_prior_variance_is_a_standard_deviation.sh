#!/usr/bin/env bash
# bayesian-torch 0.5.0 (PyPI, Intel Labs), torch 2.13.0.
#
# Expected: LinearReparameterization(..., prior_variance=v) has the prior N(prior_mean, v), as its docstring says ("variance of
# the prior"), and kl_loss(), "required to compute the ELBO", is the divergence of its posterior from that prior, in nats.
# Seen: prior_variance fills the prior's standard deviation. A variance of 0.01 (standard deviation 0.1) gives the prior a
# standard deviation of 0.01: the penalty of an untrained layer is 71 times the right one per weight, and one of 0.25 a third
# too small; only 1 is itself. kl_loss() is then the mean over a tensor's weights, not their sum (open as the project's issue
# 36), so a layer of 10,000 weights costs what one of 100 costs, and the README's `ce_loss + kl / batch_size` is no ELBO
# whatever one divides by: no single factor repairs a model whose layers differ in size.
#
# Output seen (divergences of an untrained layer; torch.distributions beside it):
#   100 weights, prior_variance 1: kl_loss 2.52; right 251.6, per weight 2.52
#   100 weights, prior_variance 0.25: kl_loss 1.24; right 183.5, per weight 1.84
#   100 weights, prior_variance 0.01: kl_loss 74.20; right 96.8, per weight 0.97
#   10000 weights, prior_variance 1: kl_loss 2.53; right 25317.3, per weight 2.53
#   10000 weights, prior_variance 0.25: kl_loss 1.24; right 18570.9, per weight 1.86
#   10000 weights, prior_variance 0.01: kl_loss 59.63; right 8396.0, per weight 0.84
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 2>/dev/null
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps bayesian-torch==0.5.0
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from bayesian_torch.layers import LinearReparameterization
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import softplus

torch.manual_seed(0)
for width in (10, 100):
    for variance in (1, 0.25, 0.01):
        layer = LinearReparameterization(width, width, prior_mean=0, prior_variance=variance, bias=False)
        posterior = Normal(layer.mu_weight, softplus(layer.rho_weight))
        own = layer.kl_loss().item()
        right = kl_divergence(posterior, Normal(0.0, variance**0.5))
        taken = kl_divergence(posterior, Normal(0.0, float(variance))).mean().item()
        total, mean = right.sum().item(), right.mean().item()
        print(f"{width**2} weights, prior_variance {variance}: kl_loss {own:.2f}; right {total:.1f}, per weight {mean:.2f}")
        assert abs(own - taken) < 1e-3 * taken, (own, taken)
        assert variance == 1 or abs(own / mean - 1) > 0.25, (own, mean)
assert "variance of the prior" in LinearReparameterization.__init__.__doc__
PYTHON
echo "as stated"

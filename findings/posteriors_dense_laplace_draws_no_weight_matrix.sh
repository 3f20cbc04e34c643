#!/usr/bin/env bash
# posteriors 0.1.3 (PyPI, Bayesian inference for torch), torch 2.13.0.
#
# Expected: laplace.dense_fisher.sample (and dense_ggn, dense_hessian) draws parameters of the shapes it was given, as
# laplace.diag_fisher.sample does: without an argument one draw, with torch.Size([5]) five.
# Seen: any parameter with two dimensions, so any linear layer, is a RuntimeError, as its draws are reshaped to their last
# dimension alone; a matrix of one row comes back without its row, [5, 4] for [5, 1, 4], and no error. The default argument,
# one draw, is an IndexError for every model, and a ValueError in ekf.dense_fisher and vi.dense. Five draws of those two are right.
#
# Output seen (weight [3, 2] and bias [3]):
#   laplace.dense_fisher: one draw IndexError, 5 draws RuntimeError
#   laplace.dense_ggn: one draw IndexError, 5 draws RuntimeError
#   laplace.dense_hessian: one draw IndexError, 5 draws RuntimeError
#   ekf.dense_fisher: one draw ValueError, 5 draws [5, 3, 2]
#   laplace.diag_fisher: one draw [3, 2], 5 draws [5, 3, 2]
#   laplace.dense_fisher, weight [1, 4]: 5 draws [5, 4]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 2>/dev/null
"$folder/venv/bin/pip" install --quiet --no-compile optree==0.20.0 tensordict==0.15.3 graphviz==0.21 2>/dev/null
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps posteriors==0.1.3 torchopt==0.7.3 2>/dev/null
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from posteriors import ekf, laplace


def drawn(module, params, *shape):
    """The shape of a draw of the weight, or the name of the error."""
    try:
        return list(module.sample(module.init(params, 1.0), *shape)["weight"].shape)
    except Exception as error:
        return type(error).__name__


layer = {"weight": torch.zeros(3, 2), "bias": torch.zeros(3)}
seen = {}
for module in (laplace.dense_fisher, laplace.dense_ggn, laplace.dense_hessian, ekf.dense_fisher, laplace.diag_fisher):
    name = module.__name__.removeprefix("posteriors.")
    seen[name] = drawn(module, layer), drawn(module, layer, torch.Size([5]))
    print(f"{name}: one draw {seen[name][0]}, 5 draws {seen[name][1]}")
row = drawn(laplace.dense_fisher, {"weight": torch.zeros(1, 4)}, torch.Size([5]))
print(f"laplace.dense_fisher, weight [1, 4]: 5 draws {row}")
dense = ("laplace.dense_fisher", "laplace.dense_ggn", "laplace.dense_hessian")
assert all(seen[name] == ("IndexError", "RuntimeError") for name in dense), seen
assert seen["ekf.dense_fisher"] == ("ValueError", [5, 3, 2]) and row == [5, 4], (seen, row)
assert seen["laplace.diag_fisher"] == ([3, 2], [5, 3, 2]), seen
PYTHON
echo "as stated"

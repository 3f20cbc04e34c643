#!/usr/bin/env bash
# bayesian-lora 0.0.6 (PyPI, the authors' package of Laplace-LoRA, arXiv 2308.13111), torch 2.13.0.
#
# Expected: the predictive variance of an item does not depend on how many items its batch holds.
# Seen: `variance` takes any batch of two or more items, and ends with an AssertionError for a batch of one, since it
# squeezes the Jacobian and loses the batch's dimension with it. Whoever serves single questions, or whose last batch
# holds one item, meets it after the Kronecker factors are there. (`jacobian_mean` with `target_ids`, the call of the
# package's README, ends with a NameError before that: the README's example cannot be run as it stands. The package also
# imports transformers, which its metadata does not name.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 bayesian-lora==0.0.6 transformers==5.24.0 numpy==2.4.6 2>/dev/null
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch import nn

import bayesian_lora
from bayesian_lora.main import jacobian_mean

RANK, WIDTH, CLASSES, WIDE, KFAC = 4, 32, 3, 16, 6


class Inputs(dict):
    input_ids = property(lambda self: self["input_ids"])


class Output(dict):
    logits = property(lambda self: self["logits"])


class Adapted(nn.Module):
    """One frozen layer with a LoRA pair, between an embedding and a head."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, WIDTH).requires_grad_(False)
        self.base = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.lora_A = nn.Linear(WIDTH, RANK, bias=False)
        self.lora_B = nn.Linear(RANK, WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, CLASSES).requires_grad_(False)

    def forward(self, input_ids):
        hidden = self.embedding(input_ids)
        hidden = torch.tanh(self.base(hidden) + self.lora_B(self.lora_A(hidden)))
        return Output(logits=self.head(hidden))


torch.manual_seed(0)
model = Adapted()
tokens = torch.randint(50, (8, 5))


def logits_of(output):
    return output.logits[:, -1]


def call(model, batch):
    return logits_of(model(**batch))


loader = [Inputs(input_ids=tokens[:4]), Inputs(input_ids=tokens[4:])]
factors = bayesian_lora.calculate_kronecker_factors(model, call, loader, KFAC, WIDE, ["lora"])
factors = bayesian_lora.cholesky_decompose_small_factors(factors, WIDE, "cpu", torch.float32)


def variance(batch):
    jacobian, mean = jacobian_mean(model, batch, output_callback=logits_of)
    prior = torch.tensor(0.1)
    return bayesian_lora.variance(batch, jacobian, factors, prior, CLASSES, RANK, KFAC, "cpu")


two = variance(Inputs(input_ids=tokens[:2]))
assert two.shape == (2, CLASSES, CLASSES), two.shape
print("two items:", tuple(two.shape), "diagonal of the first:", two[0].diagonal().tolist())
try:
    variance(Inputs(input_ids=tokens[:1]))
except AssertionError as error:
    print("one item: AssertionError", error)
else:
    raise SystemExit("one item is predicted now: this finding is out of date")
try:
    jacobian_mean(model, Inputs(input_ids=tokens[:2]), torch.arange(CLASSES))
except NameError as error:
    print("the README's call with target_ids: NameError:", error)
else:
    raise SystemExit("the README's call runs now: this finding is out of date")
PYTHON

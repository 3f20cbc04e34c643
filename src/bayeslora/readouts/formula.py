"""A head's mean as linear weights of the layers: a small file that says how it is used, without training items."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from bayeslora.readouts.head import Head
from bayeslora.readouts.regression import Regression
from bayeslora.system.files import atomic_file

FORMULA = (
    "For an item with C choices and each block b (a layer and a pooling over the choice's tokens; or likelihood: mean, "
    "sum and minimum of the tokens' log-likelihoods in nats, and their number): z = scale.b * h for the vector h of "
    "each choice, less the mean of z over the choices; a block of hidden states is divided by sqrt(sum over the "
    "choices of |z|^2 / (C - 1)). Utility u = sum over b of z . weight.b; probabilities = softmax(u / temperature). A "
    "choice is read behind its question ('Question: ...\nAnswer: choice'); layer k is the output of the k-th layer, "
    "from 1, and an adapted one is read with the adapter on, all others without it. This is the mean of the posterior: "
    "the head itself averages the softmax over the posterior."
)


def linear_weights(head: Head) -> dict[str, Tensor]:
    """By block, the posterior mean of the weights [features], float32."""
    rows = head.scaling(head.features)
    if isinstance(head.posterior, Regression):
        solved = head.posterior.solved[:, 0]
    else:  # k(x, Z) L^-T mean
        upper = head.posterior.factor.mT
        solved = torch.linalg.solve_triangular(upper, head.posterior.mean, upper=True)[:, 0]
    weights = head.scales.weights.tolist()
    return {
        name: (weight * (block.double().mT @ solved)).float()
        for (name, block), weight in zip(rows.items(), weights, strict=True)
    }


def write_formula(head: Head, path: Path) -> None:
    """`linear_weights`, the blocks' scales and the temperature as safetensors; `FORMULA` is in its metadata."""
    tensors = {f"weight.{name}": weight for name, weight in linear_weights(head).items()}
    tensors |= {f"scale.{name}": scale.contiguous() for name, scale in head.scaling.scales.items()}
    tensors["temperature"] = torch.tensor(head.scales.noise * head.noise.temperature)
    with atomic_file(path) as aside:
        save_file(tensors, aside, metadata={"formula": FORMULA})

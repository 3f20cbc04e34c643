"""The predictive of the linearised model: a Gaussian over the class logits of each item."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from bayeslora.laplace.kronecker import KroneckerBlock
from bayeslora.laplace.recording import Recording
from bayeslora.scoring import ChoiceBatch

__all__ = ["draw_logits", "item_noise", "logit_covariance"]


def logit_covariance(
    logits: Tensor,
    recording: Recording,
    blocks: Mapping[str, KroneckerBlock],
    prior_precision: float,
    memory_limit: int = 2**30,
) -> Tensor:
    """J Sigma J^T with J the Jacobian of the class logits by the weights and Sigma their posterior covariance.

    Args:
        logits: [batch, choices].
        recording: Of the forward that gave them.
        blocks: Curvature of each map.
        prior_precision: Of each weight.
        memory_limit: Bytes for the Jacobians of one group of maps; more groups take more backward passes.

    Returns:
        [batch, choices, choices], zero for choices that an item does not have.
    """
    batch, choices = logits.shape
    covariance = logits.new_zeros(batch, choices, choices)
    for names in _groups(blocks, 4 * batch * choices, memory_limit):
        jacobians: dict[str, list[Tensor]] = {name: [] for name in names}
        for one_hot in torch.eye(choices, dtype=logits.dtype, device=logits.device):
            gradients = recording.gradients(logits, one_hot.expand(batch, -1), names)
            for name, gradient in gradients.items():
                jacobians[name].append(gradient.mT @ recording.inputs(name))
        for name in names:
            covariance += blocks[name].covariance(torch.stack(jacobians.pop(name), 1), prior_precision)
    return covariance


def _groups(blocks: Mapping[str, KroneckerBlock], bytes_per_weight: int, limit: int) -> Iterator[list[str]]:
    """Consecutive maps whose Jacobians fit into `limit` together; at least one map each."""
    group: list[str] = []
    size = 0
    for name, block in blocks.items():
        needed = bytes_per_weight * len(block.input_vectors) * len(block.output_vectors)
        if group and size + needed > limit:
            yield group
            group, size = [], 0
        group.append(name)
        size += needed
    yield group


def draw_logits(mean: Tensor, covariance: Tensor, noise: Tensor) -> Tensor:
    """mean + covariance^(1/2) noise, with the symmetric root: unlike others it does not jump with rounding.

    Args:
        mean: [batch, choices]; may be -inf.
        covariance: [batch, choices, choices].
        noise: Standard normal [samples, batch, choices].

    Returns:
        [samples, batch, choices], float64 on the CPU.
    """
    values, vectors = torch.linalg.eigh(covariance.detach().cpu().double())
    root = vectors * values.clamp_min(0).sqrt().unsqueeze(-2) @ vectors.mT
    return mean.detach().cpu().double() + (root @ noise.unsqueeze(-1)).squeeze(-1)


def item_noise(batch: ChoiceBatch, num_samples: int, seed: int) -> Tensor:
    """Standard normal noise [samples, batch, choices], float64.

    An item's noise is a function of `seed` and of its tokens, so it does not depend on the other items of the batch,
    and sample s not on how many are drawn.
    """
    noise = torch.zeros(num_samples, *batch["choice_mask"].shape, dtype=torch.float64)
    for index, (tokens, count) in enumerate(zip(_tokens(batch), batch["choice_mask"].sum(-1).tolist(), strict=True)):
        key = int.from_bytes(hashlib.sha256(tokens.numpy().tobytes()).digest()[:16])
        drawn = np.random.default_rng([seed, key]).standard_normal((num_samples, count))
        noise[:, index, :count] = torch.from_numpy(drawn)
    return noise


def _tokens(batch: ChoiceBatch) -> Iterator[Tensor]:
    """Token ids of each item, without padding."""
    ids = batch["input_ids"].cpu()
    if "lengths" in batch:
        return (row[-length:] for row, length in zip(ids, batch["lengths"].tolist(), strict=True))
    return (row[mask] for row, mask in zip(ids, batch["attention_mask"].cpu().bool(), strict=True))

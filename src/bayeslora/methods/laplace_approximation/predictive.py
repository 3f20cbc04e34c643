"""The linearised model: the covariance of the class logits of each item."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from bayeslora.methods.laplace_approximation.kronecker import KroneckerBlock
from bayeslora.methods.laplace_approximation.recording import Recording
from bayeslora.methods.laplace_approximation.subspace import weighted_gradients


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
    each = torch.eye(choices, dtype=logits.dtype, device=logits.device).expand(batch, -1, -1)

    def add(name: str, jacobian: Tensor) -> None:
        covariance.add_(blocks[name].covariance(jacobian, prior_precision))

    for names in _groups(blocks, 4 * batch * choices, memory_limit):
        weighted_gradients(logits, recording, each, names, add)
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


def covariance_root(covariance: Tensor) -> Tensor:
    """The symmetric root of covariance matrices [..., n, n], float64: unlike others it does not jump with rounding."""
    values, vectors = torch.linalg.eigh(covariance.detach().double())
    return vectors * values.clamp_min(0).sqrt().unsqueeze(-2) @ vectors.mT

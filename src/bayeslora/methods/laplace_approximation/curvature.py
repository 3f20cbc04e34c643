"""The curvature of the training loss (generalised Gauss-Newton matrix) by the weights of linear maps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from bayeslora.methods.laplace_approximation.kronecker import CorrectedBlock, KroneckerBlock, KroneckerSum
from bayeslora.methods.laplace_approximation.recording import Recording, record
from bayeslora.scoring import ChoiceBatch
from bayeslora.scoring.trunk_cache import TrunkCache


def leading_root(matrices: Tensor, count: int) -> Tensor:
    """R [..., n, count] with R R^T the `count` leading eigenvectors of positive semidefinite matrices [..., n, n]."""
    values, vectors = torch.linalg.eigh(matrices.detach().double())
    return (vectors * values.clamp_min(0).sqrt().unsqueeze(-2))[..., -count:]


def output_hessian(logits: Tensor) -> Tensor:
    """diag(p) - p p^T [batch, choices, choices]: that of the categorical NLL by its logits."""
    p = logits.detach().double().softmax(-1)
    return torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)


def kronecker_blocks(
    model: nn.Module,
    maps: Mapping[str, nn.Linear],
    batches: Iterable[ChoiceBatch],
    *,
    rank: int | None = None,
    trunk_cache: TrunkCache | None = None,
) -> tuple[dict[str, KroneckerBlock], float]:
    """KFAC-reduce (arXiv 2311.00636) of each map's block of sum_n J_n^T (diag(p_n) - p_n p_n^T) J_n.

    An item has one loss, whatever its number of tokens; for such losses "reduce" is the variant that is exact in a
    linear network. An item's weight gradient sum_t g_t a_t^T becomes (sum_t g_t) (mean_t a_t)^T. The mean is over the
    tokens at which the item's logits depend on the map, so padding does not count.

    Args:
        model: With the maps in it.
        maps: From `lora_maps`.
        batches: The training items, with labels.
        rank: Of the wide factor of each block; default: full up to a width of 1024, 10 above.
        trunk_cache: Serves the frozen layers' output.

    Returns:
        The block of each map, and the log-likelihood of all items, nats.
    """
    log_likelihood = 0.0
    sums = {name: KroneckerSum(module.in_features, module.out_features, rank) for name, module in maps.items()}
    for batch in batches:
        logits, recording = record(model, batch, maps, trunk_cache)
        log_likelihood -= float(nn.functional.cross_entropy(logits.detach(), batch["labels"], reduction="sum"))
        rows: dict[str, list[Tensor]] = {name: [] for name in maps}
        reached: dict[str, Tensor] = {}
        for column in _root_gradients(logits, recording, maps):
            for name, gradients in column.items():
                rows[name].append(gradients.sum(1))
                here = (gradients != 0).any(-1, keepdim=True)
                reached[name] = reached[name] | here if name in reached else here
        for name, total in sums.items():
            tokens = reached[name].sum(1).clamp_min(1)
            total.add((recording.inputs(name) * reached[name]).sum(1) / tokens, torch.cat(rows[name]))
    return {name: total.block() for name, total in sums.items()}, log_likelihood


def corrected_blocks(
    model: nn.Module,
    maps: Mapping[str, nn.Linear],
    batches: Iterable[ChoiceBatch],
    blocks: Mapping[str, KroneckerBlock],
    trunk_cache: TrunkCache | None = None,
) -> dict[str, KroneckerBlock]:
    """EKFAC (arXiv 1806.03884): `blocks` with the eigenvalues that the curvature has in their eigenbases.

    Those of KFAC take inputs and gradients of an item for independent, and an item's tokens for one. These are the
    diagonal of sum_n J_n^T (diag(p_n) - p_n p_n^T) J_n in that basis, from one pass more.

    Args:
        model: With the maps in it.
        maps: From `lora_maps`.
        batches: The training items.
        blocks: From `kronecker_blocks`, of the same items.
        trunk_cache: Serves the frozen layers' output.
    """
    moments = {name: torch.zeros_like(block.eigenvalues) for name, block in blocks.items()}
    for batch in batches:
        logits, recording = record(model, batch, maps, trunk_cache)
        inputs = {name: recording.inputs(name) @ block.input_vectors for name, block in blocks.items()}
        for column in _root_gradients(logits, recording, maps):
            for name, gradients in column.items():
                along = (gradients @ blocks[name].output_vectors).mT @ inputs[name]
                moments[name] += along.square().sum(0)
    return {name: CorrectedBlock(**vars(block), moments=moments[name]) for name, block in blocks.items()}


def _root_gradients(logits: Tensor, recording: Recording, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """At the maps' outputs [batch, tokens, out], for each column of the root of the items' output Hessians."""
    names = list(names)
    # The Hessian has one direction less than there are choices: their scores' common shift.
    roots = leading_root(output_hessian(logits), logits.shape[-1] - 1).to(logits.dtype)
    for root in roots.unbind(-1):
        yield recording.gradients(logits, root, names)

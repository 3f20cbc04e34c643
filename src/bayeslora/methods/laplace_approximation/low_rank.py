"""A Gaussian over many weights whose precision is the prior's plus the directions that the data determine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bayeslora.methods.laplace_approximation.curvature import leading_root, output_hessian
from bayeslora.methods.laplace_approximation.kronecker import OuterProductSum
from bayeslora.methods.laplace_approximation.recording import record
from bayeslora.methods.laplace_approximation.subspace import Subspace, weighted_gradients, wide_first
from bayeslora.scoring import ChoiceBatch
from bayeslora.scoring.trunk_cache import TrunkCache

Maps = Mapping[str, nn.Linear]


def contrasts(mask: Tensor) -> Tensor:
    """Orthonormal contrasts [batch, choices, choices - 1] of the choices that an item has; zero for its missing ones.

    Args:
        mask: [batch, choices], True where the item has the choice.
    """
    has = mask.double()
    centring = torch.diag_embed(has) - has.unsqueeze(-1) * has.unsqueeze(-2) / has.sum(-1)[:, None, None]
    return leading_root(centring, mask.shape[-1] - 1)


@dataclass(frozen=True)
class ScoreCovariance:
    """Of the scores of a few items, each less the mean over its choices [batch, choices, choices].

    Args:
        posterior: Under the posterior.
        prior: Under the prior alone.
    """

    posterior: Tensor
    prior: Tensor

    @property
    def total(self) -> Tensor:
        """Posterior variance [batch], summed over the choices."""
        return _trace(self.posterior)

    @property
    def ratio(self) -> Tensor:
        """Posterior over prior variance [batch], summed over the choices: 1 where the data say nothing."""
        return self.total / _trace(self.prior).clamp_min(torch.finfo(torch.float64).tiny)


def _trace(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1).sum(-1)


def learned_share(values: Tensor, prior_variance: float) -> Tensor:
    """How much of the prior's variance the data take off, along eigenvectors of the curvature with these `values`."""
    return values / (values + 1 / prior_variance)


@dataclass(frozen=True)
class LowRankGaussian:
    """N(mean, (G + I / prior_variance)^-1) over the weights in their units, with G = vectors values vectors^T.

    The eigenvectors lie in the `subspace`; beside them and outside of it the variance is the prior's.

    Args:
        subspace: Directions of each map's weight.
        values: Eigenvalues of the curvature [k].
        vectors: Its eigenvectors in the subspace, the coordinates of one map after those of another [coordinates, k].
        prior_variance: s^2.
    """

    subspace: Subspace
    values: Tensor
    vectors: Tensor
    prior_variance: float

    def scores(
        self, model: nn.Module, batch: ChoiceBatch, maps: Maps, trunk_cache: TrunkCache | None = None
    ) -> tuple[Tensor, ScoreCovariance]:
        """The mean's scores [batch, choices], and their covariance in the model linearised there."""
        logits, recording = record(model, batch, maps, trunk_cache)
        basis = contrasts(batch["choice_mask"])
        parts = dict(zip(maps, self.vectors.split(self.subspace.sizes(maps)), strict=True))
        prior = logits.new_zeros(len(logits), basis.shape[-1], basis.shape[-1], dtype=torch.float64)
        along = logits.new_zeros(len(logits), basis.shape[-1], len(self.values), dtype=torch.float64)

        def add(name: str, gradients: Tensor) -> None:
            own = self.subspace.in_units(name, gradients)
            flat = own.flatten(-2)
            prior.add_(flat @ flat.mT)
            along.add_(self.subspace.coordinates(name, own) @ parts[name])

        weighted_gradients(logits, recording, basis, maps, add)
        posterior = prior - (along * learned_share(self.values, self.prior_variance)) @ along.mT
        whole = [self.prior_variance * basis @ part @ basis.mT for part in (posterior, prior)]
        return logits.detach(), ScoreCovariance(*whole)


def leading_directions(
    model: nn.Module, maps: Maps, batches: Iterable[ChoiceBatch], count: int, trunk_cache: TrunkCache | None = None
) -> dict[str, Tensor]:
    """Of each map the orthonormal directions [width, count] of its wider side along which its block of the
    Gauss-Newton matrix is largest, summed over the other side."""
    sums: dict[str, OuterProductSum] = {}

    def add(name: str, gradients: Tensor) -> None:
        rows = wide_first(gradients).mT
        sums.setdefault(name, OuterProductSum(rows.shape[-1], 4 * count)).add(rows.flatten(0, -2))

    _gauss_newton_rows(model, maps, batches, 1, add, trunk_cache)
    return {name: total.eigen()[1][:, :count] for name, total in sums.items()}


def low_rank_curvature(
    model: nn.Module,
    maps: Maps,
    batches: Iterable[ChoiceBatch],
    subspace: Subspace,
    columns: int,
    rank: int,
    trunk_cache: TrunkCache | None = None,
) -> tuple[Tensor, Tensor, float]:
    """Eigenvalues [k] and eigenvectors [coordinates, k] in the subspace of the Gauss-Newton matrix
    sum_n J_n^T (diag(p_n) - p_n p_n^T) J_n, and the log-likelihood of all items, nats.

    Args:
        model: With the maps in it.
        maps: From `lora_maps`.
        batches: The training items, with labels.
        subspace: In which the matrix is kept.
        columns: Eigenvectors of each item's output Hessian that count, one backward pass each.
        rank: Up to items x columns of 2 rank exact, beyond it the leading directions as they come.
        trunk_cache: Serves the frozen layers' output.
    """
    total = OuterProductSum(sum(subspace.sizes(maps)), rank)
    parts: list[Tensor] = []

    def add(name: str, gradients: Tensor) -> None:
        parts.append(subspace.coordinates(name, subspace.in_units(name, gradients)))
        if len(parts) == len(maps):
            total.add(torch.cat(parts, -1).flatten(0, 1))
            parts.clear()

    log_likelihood = _gauss_newton_rows(model, maps, batches, columns, add, trunk_cache)
    return *total.eigen(), log_likelihood


def _gauss_newton_rows(
    model: nn.Module,
    maps: Maps,
    batches: Iterable[ChoiceBatch],
    columns: int,
    use: Callable[[str, Tensor], None],
    trunk_cache: TrunkCache | None,
) -> float:
    """Gradients J^T r of each map for the leading columns r of the root of each item's output Hessian, to `use`;
    returns the log-likelihood, nats."""
    log_likelihood = 0.0
    for batch in batches:
        logits, recording = record(model, batch, maps, trunk_cache)
        log_likelihood -= float(nn.functional.cross_entropy(logits.detach(), batch["labels"], reduction="sum"))
        weights = leading_root(output_hessian(logits), min(columns, logits.shape[-1] - 1))
        weighted_gradients(logits, recording, weights, maps, use)
    return log_likelihood

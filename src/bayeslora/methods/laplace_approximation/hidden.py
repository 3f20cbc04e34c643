"""A Gaussian over the scores of an item by the hidden states that a plain forward computes anyway."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bayeslora.methods.laplace_approximation.curvature import leading_root, output_hessian
from bayeslora.methods.laplace_approximation.low_rank import (
    ScoreCovariance,
    contrasts,
    learned_share,
)
from bayeslora.models.layers import descendants, evaluating, outermost_layers, tokens_first
from bayeslora.readouts.hidden import by_choice, hidden_states
from bayeslora.scoring import ChoiceBatch
from bayeslora.scoring.cloze import ClozeBatch
from bayeslora.scoring.trunk_cache import TrunkCache, served
from bayeslora.scoring.unpacked import UnpackedBatch


def middle_layer(model: nn.Module, adapted: Iterable[nn.Module]) -> int:
    """How many layers lie below the middle of those that hold one of the `adapted` modules.

    Raises:
        ValueError: None of the model's transformer layers holds one.
    """
    wanted = set(map(id, adapted))
    layers = enumerate(outermost_layers(model))
    numbers = [number for number, layer in layers if any(id(part) in wanted for part in descendants(layer))]
    if not numbers:
        raise ValueError(
            f"hidden states are read in the middle of the adapted layers, but no transformer layer of "
            f"{type(model).__name__} that is known has an adapter; use the method GaussNewton, which reads gradients."
        )
    return max(1, numbers[0] + len(numbers) // 2)


@dataclass(frozen=True)
class HiddenScores:
    """What a forward says of the scores of a few items.

    Args:
        logits: The scores [batch, choices].
        vectors: Of each choice [batch, choices, width], or of the item alone [batch, 1, width].
        basis: Orthonormal contrasts [batch, choices, choices - 1] of the choices that an item has.
    """

    logits: Tensor
    vectors: Tensor
    basis: Tensor

    @property
    def shared(self) -> bool:
        """Whether one weight vector reads all choices; else, of an item's vector, each choice has one of its own."""
        return self.vectors.shape[1] > 1

    def contrasts(self, std: Tensor) -> Tensor:
        """[batch, choices - 1, width] over `std` [width]; the item's vector for each of them, where there is one."""
        scaled = self.vectors / std
        return self.basis.mT @ scaled if self.shared else scaled.expand(-1, self.basis.shape[-1], -1)

    def gram(self, left: Tensor, right: Tensor) -> Tensor:
        """left right^T [batch, choices - 1, choices - 1]; only the diagonal where each choice has its own weights."""
        whole = left @ right.mT
        return whole if self.shared else torch.diag_embed(whole.diagonal(dim1=-2, dim2=-1))

    def curvature_rows(self) -> Tensor:
        """Rows [rows, width] whose outer products are the items' Gauss-Newton matrix of the weights; of weights of
        their own their mean."""
        root = leading_root(output_hessian(self.logits), self.logits.shape[-1])
        if self.shared:
            return (root.mT @ self.vectors).flatten(0, 1)
        kept = max(1, self.basis.shape[-1])
        return root.square().sum((-2, -1), keepdim=True).div(kept).sqrt().mul(self.vectors).flatten(0, 1)


def hidden_scores(
    model: nn.Module, batch: ChoiceBatch, layer: int, trunk_cache: TrunkCache | None = None
) -> HiddenScores:
    """Of one forward in eval mode and without gradients, float64.

    A choice's vector is the mean over its own tokens of the hidden states behind so many layers, where choices have
    tokens of their own (cloze); else the mean over all tokens of the item.

    Args:
        model: With adapters.
        batch: On its device.
        layer: Of `middle_layer`.
        trunk_cache: Serves the frozen layers' output.
    """
    suited = batch.suited_to(model)
    with evaluating(model), torch.no_grad(), served(suited, trunk_cache):
        found, logits = hidden_states(model, [layer], lambda: suited.choice_logits(model), whole=True)
    assert logits is not None  # The whole model ran.
    vectors = _vectors(suited, found[0].transpose(0, 1) if tokens_first(model) else found[0])
    return HiddenScores(logits, vectors.double(), contrasts(batch["choice_mask"]))


def _vectors(batch: ChoiceBatch, states: Tensor) -> Tensor:
    """[batch, choices or 1, width] of hidden states [rows, tokens, width]."""
    if isinstance(batch, ClozeBatch | UnpackedBatch):
        return by_choice(batch, states.unsqueeze(2))[:, 1:, 0, 0]
    mask: Tensor | None = batch.get("attention_mask")
    if "lengths" in batch:  # Packed, with padding on the left.
        before = states.shape[1] - batch["lengths"].unsqueeze(1)
        mask = torch.arange(states.shape[1], device=states.device) >= before
    if mask is None or mask.shape != states.shape[:2]:
        means = states.float().mean(1, keepdim=True)
    else:
        weights = mask.float().unsqueeze(-1)
        means = (states.float() * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True)
    # Codes ask an item in several orders of its options.
    return means.unflatten(0, (-1, batch.rows_per_item)).mean(1)


@dataclass(frozen=True)
class HiddenCurvature:
    """Gauss-Newton matrix of the training items by the weights that read the vectors.

    Args:
        std: Standard deviation of each coordinate of the vectors [width]; the weights' unit is one over it.
        values: Eigenvalues [k].
        vectors: Eigenvectors [width, k].
    """

    std: Tensor
    values: Tensor
    vectors: Tensor

    def along(self, found: HiddenScores) -> tuple[Tensor, Tensor]:
        """Contrasts of an item's vectors [batch, choices - 1, width], and their coordinates along the eigenvectors
        [batch, choices - 1, k]."""
        own = found.contrasts(self.std.to(found.vectors))
        return own, own @ self.vectors.to(own)


def hidden_curvature(
    model: nn.Module, batches: Iterable[ChoiceBatch], layer: int, trunk_cache: TrunkCache | None = None
) -> HiddenCurvature:
    """That of the items of `batches`, from one plain pass over them.

    Raises:
        ValueError: The vectors of all items are the same, as those of a single one are.
    """
    count, total, squares, gauss_newton = 0, torch.zeros(()), torch.zeros(()), torch.zeros(())
    for batch in batches:
        scores = hidden_scores(model, batch, layer, trunk_cache)
        flat = scores.vectors[batch["choice_mask"]] if scores.shared else scores.vectors.flatten(0, 1)
        rows = scores.curvature_rows()
        count, total, squares = count + len(flat), total + flat.sum(0).cpu(), squares + flat.square().sum(0).cpu()
        gauss_newton = gauss_newton + (rows.mT @ rows).cpu()
    std = (squares / count - (total / count).square()).clamp_min(0).sqrt()
    if not std.max() > 0:
        raise ValueError(
            f"the hidden states of the training items behind layer {layer} do not differ ({count} of them), so they "
            "say nothing of which items are new; give at least two different items, or predict by the mean "
            "(num_samples 0)."
        )
    std = torch.where(std > 1e-6 * std.max(), std, torch.inf)  # What never changes says nothing.
    values, vectors = torch.linalg.eigh(gauss_newton / std / std.unsqueeze(-1))
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    return HiddenCurvature(std, values[kept], vectors[:, kept])


@dataclass(frozen=True)
class HiddenGaussian:
    """Score contrasts = those of the mean + vectors w / std, w ~ N(0, scale (G + I / prior_variance)^-1).

    Args:
        layer: Whose states are read.
        curvature: G.
        prior_variance: What a posterior variance would be without data, over `scale`: the smaller, the nearer are
            posterior and prior.
        scale: Of both.
    """

    layer: int
    curvature: HiddenCurvature
    prior_variance: float
    scale: float

    def scores(
        self, model: nn.Module, batch: ChoiceBatch, trunk_cache: TrunkCache | None = None
    ) -> tuple[Tensor, ScoreCovariance]:
        """The mean's scores [batch, choices], and their covariance."""
        found = hidden_scores(model, batch, self.layer, trunk_cache)
        return found.logits, self.covariance(found)

    def covariance(self, found: HiddenScores) -> ScoreCovariance:
        """Of the scores of a forward."""
        own, along = self.curvature.along(found)
        prior = found.gram(own, own)
        posterior = prior - found.gram(along * learned_share(self.curvature.values.to(own), self.prior_variance), along)
        whole = [self.scale * self.prior_variance * found.basis @ part @ found.basis.mT for part in (posterior, prior)]
        return ScoreCovariance(*whole)

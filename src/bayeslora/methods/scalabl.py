"""ScalaBL (arXiv 2506.21408): variational inference in the r-dimensional subspace between the LoRA factors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bayeslora.adapters import RandomLoraConfig, Side, register
from bayeslora.adapters.random_factor import RandomFactor
from bayeslora.methods.base import VariationalMethod
from bayeslora.options.from_config import options_of
from bayeslora.options.ranges import StandardDeviation
from bayeslora.posteriors.weights.base import KL, Noise, WeightPosterior
from bayeslora.posteriors.weights.gaussian import GaussianWeights


@dataclass(frozen=True)
class ScaledRowsWeights(WeightPosterior):
    """W = diag(s) F with a deterministic frame F and independent Gaussian scales s of its rows.

    Args:
        rows: r.
        columns: i.
        std: Standard deviation of a scale at the start.
        prior_std: That of its prior N(0, prior_std^2).

    Raises:
        ValueError: A standard deviation is not positive.
    """

    std: float = 0.05
    prior_std: float = 1.0

    def __post_init__(self) -> None:
        self.scales()

    def scales(self) -> GaussianWeights:
        """q(s), s as a column `[rows, 1]`."""
        return GaussianWeights(self.rows, 1, std=self.std, prior_std=self.prior_std)

    @property
    def noise_shapes(self) -> tuple[tuple[int, ...], ...]:
        """One number per row."""
        return self.scales().noise_shapes

    def initial(self, weight: Tensor) -> dict[str, Tensor]:
        """`mean` (F, rows of length 1) `[rows, columns]`, and of the scales `s_loc` and `s_log_std` `[rows, 1]`."""
        length = torch.linalg.vector_norm(weight.detach().float(), dim=1, keepdim=True)
        return {
            "mean": nn.functional.normalize(weight.detach().float(), dim=1),
            "s_loc": length,
            "s_log_std": torch.full_like(length, math.log(self.std)),
        }

    def mean_weight(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """diag(E[s]) F."""
        return parameters["s_loc"] * parameters["mean"]

    def sample_weight(self, parameters: Mapping[str, Tensor], noise: Noise) -> Tensor:
        """diag(s) F."""
        return self.scales().sample_weight(_scale_parameters(parameters), noise) * parameters["mean"]

    def kl(self, parameters: Mapping[str, Tensor], noise: Noise | None) -> KL:
        """KL[q(s) || p(s)], closed form."""
        return self.scales().kl(_scale_parameters(parameters), noise)


def _scale_parameters(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"mean": parameters["s_loc"], "log_std": parameters["s_log_std"]}


@register("SCALABL_LORA")
@dataclass
class ScalaBLConfig(RandomLoraConfig):
    """Config of ScalaBL (arXiv 2506.21408); every field of `peft.LoraConfig` works as there, and:

    Args:
        std: Standard deviation of a scale at the start.
        prior_std: Standard deviation of the prior N(0, prior_std^2) of a scale.

    Raises:
        ValueError: A value out of range, or an option of LoRA that cannot be combined.
    """

    random_sides: ClassVar[tuple[Side, ...]] = ("A",)

    std: StandardDeviation = 0.05
    prior_std: StandardDeviation = 1.0

    def factor(self, side: Side, module: nn.Linear) -> RandomFactor:
        """Where the start allows it, one with orthogonal rows."""
        weight = module.weight.data
        # Where B is zero any A gives the same model. Other starts, such as PiSSA's, need the A that they chose.
        if self.init_lora_weights in (True, "gaussian"):
            weight = orthogonal_rows(weight)
        return RandomFactor(self.family(side, module.out_features, module.in_features), weight)

    def family(self, side: Side, rows: int, columns: int) -> ScaledRowsWeights:
        """q(A) of a factor `[rows, columns]`."""
        return ScaledRowsWeights(rows, columns, std=self.std, prior_std=self.prior_std)


def orthogonal_rows(weight: Tensor) -> Tensor:
    """diag(S) V^T of the singular value decomposition U diag(S) V^T; a tall matrix has none and stays as it is."""
    if weight.shape[0] > weight.shape[1]:
        return weight
    _, values, right = torch.linalg.svd(weight.float(), full_matrices=False)
    return values.unsqueeze(1) * right


@options_of(ScalaBLConfig, posterior_learning_rate_scale=5.0)
class ScalaBL(VariationalMethod):
    """ScalaBL: the update is B diag(s) F with q(s) = N(s_loc, s_std^2) on r scales, 2 r numbers more than LoRA.

    As in the authors' code (github.com/SRI-CSL/BayesAdapt; of the paper only the abstract was at hand): a random A is
    decomposed into U diag(S) V^T, F starts at V^T, s_loc at S and B at zero, all three are trained; the prior is
    N(0, 1); a forward in training uses one draw for the whole batch. That code minimises KL[p || q] in steps of its
    own, keeps s_loc positive, and draws the first standard deviations from U(0.05 / sqrt(2), 0.05); here it is
    KL[q || p] in one loss, mean NLL + beta * KL / N, with a free s_loc and one start for all.
    """

    name = "scalabl"

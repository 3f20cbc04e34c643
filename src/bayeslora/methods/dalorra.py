"""DALorRA (arXiv 2607.02182): Bernoulli masks on the ranks of LoRA."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from bayeslora.adapters import RandomLoraConfig, Side, register
from bayeslora.methods.base import VariationalMethod
from bayeslora.options.from_config import options_of
from bayeslora.options.ranges import Positive, Range
from bayeslora.posteriors.weights.base import KL, Noise, WeightPosterior


@dataclass(frozen=True)
class MaskedRowsWeights(WeightPosterior):
    """W = diag(z) A with a deterministic A and independent masks z ~ Bernoulli(sigmoid(phi)) of its rows.

    Args:
        rows: r.
        columns: i.
        probability: Of keeping a row, at the start.
        prior_probability: That of the prior.
        temperature: Of the relaxed masks of training; near 0 they are nearly 0 or 1.

    Raises:
        ValueError: A probability is not in (0, 1), or the temperature is not positive.
    """

    probability: float = 0.9
    prior_probability: float = 0.5
    temperature: float = 2 / 3

    def __post_init__(self) -> None:
        for name in ("probability", "prior_probability"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie between 0 and 1, both excluded, got {getattr(self, name)}.")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}.")

    @property
    def noise_shapes(self) -> tuple[tuple[int, ...], ...]:
        """One number per row."""
        return ((self.rows, 1),)

    def initial(self, weight: Tensor) -> dict[str, Tensor]:
        """`mean` (A) `[rows, columns]` and `mask_logit` (phi) `[rows, 1]`."""
        logit = math.log(self.probability / (1 - self.probability))
        return {
            "mean": weight.detach().float() / self.probability,
            "mask_logit": torch.full((self.rows, 1), logit, device=weight.device),
        }

    def mean_weight(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """diag(E[z]) A."""
        return parameters["mask_logit"].sigmoid() * parameters["mean"]

    def sample_weight(self, parameters: Mapping[str, Tensor], noise: Noise) -> Tensor:
        """diag(z) A with masks of 0 and 1."""
        masks = parameters["mask_logit"] + _logistic(noise) > 0
        return masks * parameters["mean"]

    def training_weight(self, parameters: Mapping[str, Tensor], noise: Noise) -> Tensor:
        """diag(z) A with relaxed masks in (0, 1); above 1/2 where those of the same noise are 1."""
        masks = torch.sigmoid((parameters["mask_logit"] + _logistic(noise)) / self.temperature)
        return masks * parameters["mean"]

    def kl(self, parameters: Mapping[str, Tensor], noise: Noise | None) -> KL:
        """KL between the Bernoulli distributions of the masks, exact."""
        logit = parameters["mask_logit"]
        kept = nn.functional.logsigmoid(logit) - math.log(self.prior_probability)
        dropped = nn.functional.logsigmoid(-logit) - math.log1p(-self.prior_probability)
        probability = logit.sigmoid()
        total = (probability * kept + (1 - probability) * dropped).sum((-2, -1))
        return KL(total, torch.zeros_like(total))


def _logistic(noise: Noise) -> Tensor:
    """Logistic numbers log(u / (1 - u)) `[samples, ..., rows, 1]`, u the normal distribution function of the noise."""
    normal = noise.normal[0]
    return torch.special.log_ndtr(normal) - torch.special.log_ndtr(-normal)


@register("DALORRA")
@dataclass
class DalorraConfig(RandomLoraConfig):
    """Config of DALorRA (arXiv 2607.02182); every field of `peft.LoraConfig` works as there, and:

    Args:
        probability: Of keeping a rank, at the start.
        prior_probability: That of the prior.
        temperature: Of the relaxed masks of training; near 0 they are nearly 0 or 1.

    Raises:
        ValueError: A value out of range, or an option of LoRA that cannot be combined.
    """

    random_sides: ClassVar[tuple[Side, ...]] = ("A",)

    probability: Annotated[float, Range(0, 1, above=True, below=True)] = 0.9
    prior_probability: Annotated[float, Range(0, 1, above=True, below=True)] = 0.5
    temperature: Positive = 2 / 3

    def family(self, side: Side, rows: int, columns: int) -> MaskedRowsWeights:
        """q(A) of a factor `[rows, columns]`."""
        return MaskedRowsWeights(
            rows,
            columns,
            probability=self.probability,
            prior_probability=self.prior_probability,
            temperature=self.temperature,
        )


@options_of(DalorraConfig, posterior_learning_rate_scale=10.0)
class Dalorra(VariationalMethod):
    """DALorRA: the update is B diag(z) A with z ~ Bernoulli(sigmoid(phi)), r numbers more than LoRA.

    Only a summary of the paper (arXiv 2607.02182) was at hand: masks on the ranks, Gumbel-sigmoid relaxation, exact
    Bernoulli KL, learning rate 1e-2 for phi (ten times this package's default for LoRA), masks drawn at prediction.
    The rest was chosen here: training uses the relaxed masks themselves (no straight-through estimator), one draw for
    the whole batch; a prediction draws masks of 0 and 1; the mean is E[z] = sigmoid(phi); the prior is
    Bernoulli(1/2); the temperature 2/3 is that of arXiv 1611.00712; A starts at LoRA's divided by `probability`, so
    that the mean starts at LoRA. The loss is mean NLL + beta * KL / N. Since its NLL is that of relaxed masks, it is
    the ELBO only in the limit of temperature 0.
    """

    name = "dalorra"

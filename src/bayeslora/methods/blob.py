"""BLoB (arXiv 2406.11675): a mean-field Gaussian posterior on the LoRA factor A, trained by backpropagation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bayeslora.adapters import RandomLoraConfig, Side, register
from bayeslora.methods.base import VariationalMethod
from bayeslora.options.from_config import options_of
from bayeslora.options.ranges import StandardDeviation
from bayeslora.posteriors.weights.gaussian import GaussianWeights


@dataclass(frozen=True)
class BlobWeights(GaussianWeights):
    """A Gaussian whose standard deviation is the square of a parameter, Omega = G^2.

    Args:
        std: Largest standard deviation at the start, epsilon^2; they lie between half of it and it.
        flipout: Whether each row of a training batch has its own signs of the perturbation.
    """

    flipout: bool = True

    def initial(self, weight: Tensor) -> dict[str, Tensor]:
        """`mean` and `root_std` (G), `[rows, columns]` each; G ~ U(epsilon / sqrt(2), epsilon)."""
        mean = super().initial(weight)["mean"]
        root = torch.empty_like(mean).uniform_(math.sqrt(self.std / 2), math.sqrt(self.std))
        return {"mean": mean, "root_std": root}

    def standard_deviation(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Omega `[..., rows, columns]`."""
        return parameters["root_std"].square()


@register("BLOB_LORA")
@dataclass
class BlobConfig(RandomLoraConfig):
    """Config of BLoB (arXiv 2406.11675); every field of `peft.LoraConfig` works as there, and:

    Args:
        epsilon: Start of G ~ U(epsilon / sqrt(2), epsilon), the root of the standard deviation of a weight of A.
        prior_std: Standard deviation of the prior N(0, prior_std^2) of a weight of A.
        flipout: Whether each row of a training batch has its own signs of the perturbation (arXiv 1803.04386). Off, a
            batch split into micro-batches gives exactly the same update.

    Raises:
        ValueError: A value out of range, or an option of LoRA that cannot be combined.
    """

    random_sides: ClassVar[tuple[Side, ...]] = ("A",)

    epsilon: StandardDeviation = 0.05
    prior_std: StandardDeviation = 0.2
    flipout: bool = True

    def family(self, side: Side, rows: int, columns: int) -> BlobWeights:
        """q(A) of a factor `[rows, columns]`."""
        return BlobWeights(rows, columns, std=self.epsilon**2, prior_std=self.prior_std, flipout=self.flipout)


@options_of(BlobConfig)
class Blob(VariationalMethod):
    """BLoB: q(A) = N(M, Omega^2) with Omega = G^2 and independent weights, B deterministic (arXiv 2406.11675).

    The posterior, its parameterisation and start, the prior and Flipout are those of the paper. It takes turns between
    an AdamW step for the likelihood and an SGD step for the KL, weighted 2^i / (2^(M + 1) - 1) in batch i of M; here
    both are one loss, mean NLL + beta * KL / N, and one AdamW step.
    """

    name = "blob"

"""Mean-field variational inference: independent Gaussians on all weights of both LoRA factors (arXiv 1505.05424)."""

from __future__ import annotations

from dataclasses import dataclass

from bayeslora.adapters import RandomLoraConfig, Side, register
from bayeslora.methods.base import VariationalMethod
from bayeslora.options.from_config import options_of
from bayeslora.options.ranges import StandardDeviation
from bayeslora.posteriors.weights.gaussian import GaussianWeights


@register("MEAN_FIELD_LORA")
@dataclass
class MeanFieldConfig(RandomLoraConfig):
    """Config of mean-field LoRA; every field of `peft.LoraConfig` works as there, and:

    Args:
        std: Standard deviation of a weight of A or B at the start.
        prior_std: Standard deviation of the prior N(0, prior_std^2) of a weight.
        flipout: Whether each row of a training batch has its own signs of the perturbation (arXiv 1803.04386):
            less variance of the gradient, but a batch split into micro-batches gives the same update only in
            distribution.

    Raises:
        ValueError: A value out of range, or an option of LoRA that cannot be combined.
    """

    std: StandardDeviation = 0.01
    prior_std: StandardDeviation = 0.2
    flipout: bool = False

    def family(self, side: Side, rows: int, columns: int) -> GaussianWeights:
        """q(W) of a factor `[rows, columns]`."""
        return GaussianWeights(rows, columns, std=self.std, prior_std=self.prior_std, flipout=self.flipout)


@options_of(MeanFieldConfig, posterior_learning_rate_scale=5.0)
class MeanField(VariationalMethod):
    """Bayes by Backprop on both LoRA factors: q(W) = N(mean, diag(std^2)), means from LoRA's own start.

    Source: Blundell et al., arXiv 1505.05424, with a single Gaussian prior in the place of their mixture, for which
    the KL has a closed form.
    """

    name = "mean_field"

"""TFB (arXiv 2412.05723): a posterior around a trained LoRA adapter, as wide as the loss on an anchor set allows."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from bayeslora.adapters import RandomLoraConfig, Side, register
from bayeslora.adapters.random_factor import RandomFactor
from bayeslora.methods.base import Method, State, TrainingResult
from bayeslora.options.ranges import Count, Positive, Size
from bayeslora.posteriors.weights.gaussian import FixedGaussianWeights
from bayeslora.prediction.predictive import predict
from bayeslora.scoring import ChoiceBatch
from bayeslora.system.log import logger


@dataclass(frozen=True)
class TfbWeights(FixedGaussianWeights):
    """A Gaussian with one standard deviation per row, which no optimizer trains; 0 until the search has found it."""

    fixed: ClassVar[tuple[str, ...]] = ("std",)

    def initial(self, weight: Tensor) -> dict[str, Tensor]:
        """`mean` `[rows, columns]` and `std` `[rows, 1]`, zero."""
        mean = weight.detach().float().clone()
        return {"mean": mean, "std": torch.zeros_like(mean[:, :1])}

    def standard_deviation(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Of each row `[..., rows, 1]`."""
        return parameters["std"]


@register("TFB_LORA")
@dataclass
class TfbConfig(RandomLoraConfig):
    """Config of TFB (arXiv 2412.05723); every field of `peft.LoraConfig` works as there."""

    random_sides: ClassVar[tuple[Side, ...]] = ("A",)

    def family(self, side: Side, rows: int, columns: int) -> TfbWeights:
        """q(A) of a factor `[rows, columns]`."""
        return TfbWeights(rows, columns)


class Tfb(Method):
    """Training-free Bayesianization (arXiv 2412.05723): train as plain LoRA, then search for one noise level.

    With the thin SVD B = U diag(d) V^T of each layer, B' = U diag(d) and A' = V^T A give the same product, and
    A'_ij ~ N(A'_ij, (sigma_q / d_i)^2) makes the noise of B' A' isotropic in the space of U's columns. sigma_q, shared
    by all layers, is the largest whose NLL on the anchor set changes by at most `tolerance`, relative to that of the
    mean. Any trained LoRA adapter will do: give it as `init_from` and train for 0 epochs.

    The anchor set is drawn from the training items. The NLL is that of the predictive of `anchor_samples` draws, the
    same ones for every sigma_q, so that it is a smooth function of it.

    Args:
        tolerance: Largest relative change of the anchor NLL, up or down; 0.003 is 0.3 %.
        anchor_examples: Number of anchors, rounded up to whole batches drawn with the run's seed; null: all items.
        anchor_samples: Draws of the predictive.
        anchor_labels: "true": the items' labels. "predicted": the choice that the mean finds likeliest, which needs no
            labels and is what the public code does.
    """

    name = "tfb"
    config_class = TfbConfig
    needs_items = True

    def __init__(
        self,
        tolerance: Positive = 0.003,
        anchor_examples: Count | None = 128,
        anchor_samples: Size = 10,
        anchor_labels: Literal["true", "predicted"] = "true",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if not tolerance > 0:
            raise ValueError(f"tolerance must be positive, got {tolerance}; 0.003 is 0.3 %.")
        for name, value in (("anchor_examples", anchor_examples), ("anchor_samples", anchor_samples)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if anchor_labels not in ("true", "predicted"):
            raise ValueError(f"anchor_labels must be 'true' or 'predicted', got {anchor_labels!r}.")
        self.tolerance = tolerance
        self.anchor_examples = anchor_examples
        self.anchor_samples = anchor_samples
        self.anchor_labels = anchor_labels

    def fit_posterior(self, model: PeftModel, training: TrainingResult) -> State:
        """Turn each layer into its SVD form and set the standard deviations; the mean's function stays the same.

        Raises:
            ValueError: B is zero in all layers: the adapter has not been trained.
        """
        rows = [(factor, _inverse(_to_svd_form(factor, other))) for factor, other in _pairs(model)]
        if not any(inverse.any() for _, inverse in rows):
            raise ValueError(
                "TFB needs a trained adapter, but B is zero in all layers; train for at least one epoch, or give a "
                "trained adapter as init_from."
            )
        anchors = [
            (batch, self._labels(model, batch, training))
            for batch in _subset(list(training.batches()), self.anchor_examples, training.seed)
        ]

        def nll(num_samples: int) -> float:
            """Mean NLL of the anchors, nats."""
            losses = []
            for batch, labels in anchors:
                predictive = predict(model, batch, num_samples, training.seed, trunk_cache=training.trunk_cache)
                losses.append(nn.functional.nll_loss(predictive.log_probabilities, labels, reduction="none"))
            return torch.cat(losses).double().mean().item()

        at_mean = nll(0)

        def change(sigma: float) -> float:
            _set_noise_level(rows, sigma)
            return abs(nll(self.anchor_samples) - at_mean) / max(at_mean, 1e-12)

        sigma, evaluations = largest_sigma(change, self.tolerance)
        _set_noise_level(rows, sigma)
        logger.info(
            "TFB: sigma_q = %.4g after %d evaluations of the NLL of %d anchors (%.4g nats at the mean)",
            sigma,
            evaluations,
            sum(batch.batch_size for batch, _ in anchors),
            at_mean,
        )
        return {}

    def _labels(self, model: PeftModel, batch: ChoiceBatch, training: TrainingResult) -> Tensor:
        if self.anchor_labels == "predicted":
            return predict(model, batch, 0, trunk_cache=training.trunk_cache).log_probabilities.argmax(-1)
        if batch.labels is None:
            raise ValueError("anchors without labels need anchor_labels='predicted'.")
        return batch.labels


def largest_sigma(
    change: Callable[[float], float],
    tolerance: float,
    start: float = 0.01,
    precision: float = 1.05,
    max_evaluations: int = 40,
) -> tuple[float, int]:
    """The largest sigma whose `change` stays within `tolerance`, and how many evaluations that took.

    A bracket with one end within the tolerance and the other beyond it shrinks by bisection in the logarithm; while an
    end is missing, sigma grows or shrinks by factors. As the change of a smooth loss starts out as sigma^2, it is tried
    first where that rule puts the crossing. If `change` is not monotone, one of its crossings is found.

    Args:
        change: Of the loss at a sigma; NaN counts as beyond any tolerance.
        tolerance: Its bound.
        start: The first sigma.
        precision: Bound of the ratio between the bracket's upper end and the sigma returned.
        max_evaluations: Where the search ends at the latest, with a warning and the largest sigma found so far.

    Returns:
        A sigma within the tolerance; 0 if none was found.
    """
    low, high, sigma, nudge = 0.0, math.inf, start, precision**0.4
    for evaluations in range(1, max_evaluations + 1):
        value = change(sigma)
        within = value <= tolerance
        low, high = (sigma, high) if within else (low, sigma)
        if high <= low * precision:
            return low, evaluations
        middle = 2 * low if high == math.inf else high / 2 if low == 0 else math.sqrt(low * high)
        if 0 < value < math.inf and evaluations % 4:
            # A little to the other side of the crossing, to close the bracket, and inside it.
            guess = sigma * min(10.0, math.sqrt(tolerance / value)) * (nudge if within else 1 / nudge)
            sigma = min(max(guess, low * nudge), high / nudge)
        else:
            sigma = middle
    logger.warning(
        "the search for sigma_q ended after %d evaluations with a bracket of %.3g to %.3g; check the tolerance and "
        "the loss on the training items",
        max_evaluations,
        low,
        high,
    )
    return low, max_evaluations


def _pairs(model: nn.Module) -> list[tuple[RandomFactor, nn.Linear]]:
    """A and B of each adapted layer."""
    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    return [
        (layer.lora_A[name], layer.lora_B[name])
        for layer in layers
        for name in layer.active_adapters
        if name in layer.lora_A
    ]


@torch.no_grad()
def _to_svd_form(factor: RandomFactor, other: nn.Linear) -> Tensor:
    """Replace B `[out, r]` and A `[r, in]` by U diag(d) and V^T A; returns d `[r]`, float64.

    Where the layer has fewer outputs than r, rows of zeros are added: their singular values are 0.
    """
    weight, mean = other.weight, factor.parameters_by_name["mean"]
    outputs, rank = weight.shape
    padded = nn.functional.pad(weight.double(), (0, 0, 0, max(0, rank - outputs)))
    left, singular, right = torch.linalg.svd(padded, full_matrices=False)
    weight.copy_(left[:outputs] * singular)
    mean.copy_(right @ mean.double())
    return singular


def _inverse(singular: Tensor) -> Tensor:
    """1 / d `[r]`, and 0 where d is 0 up to float32 rounding: noise of such a row has no effect, or no bound."""
    rounding = singular.max() * singular.numel() * torch.finfo(torch.float32).eps
    return torch.where(singular > rounding, 1 / singular, 0.0)


def _set_noise_level(rows: list[tuple[RandomFactor, Tensor]], sigma: float) -> None:
    """std of row i is sigma / d_i."""
    for factor, inverse in rows:
        factor.parameters_by_name["std"].copy_(sigma * inverse.unsqueeze(-1))


def _subset(batches: list[ChoiceBatch], examples: int | None, seed: int) -> list[ChoiceBatch]:
    """Batches in random order until they hold `examples` items; all of them for None."""
    if examples is None:
        return batches
    chosen: list[ChoiceBatch] = []
    for batch in random.Random(seed).sample(batches, len(batches)):
        if sum(one.batch_size for one in chosen) >= examples:
            break
        chosen.append(batch)
    return chosen

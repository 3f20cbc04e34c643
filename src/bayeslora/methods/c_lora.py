"""C-LoRA (arXiv 2505.17773): a posterior between the LoRA factors that depends on the input."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bayeslora.adapters import RandomLoraConfig, Side, register
from bayeslora.adapters.random_module import RandomModule, check_sample_major, random_signs
from bayeslora.methods.base import VariationalMethod
from bayeslora.options.from_config import options_of
from bayeslora.options.ranges import Size, StandardDeviation
from bayeslora.posteriors.weights.base import KL
from bayeslora.posteriors.weights.gaussian import GaussianWeights
from bayeslora.posteriors.weights.whitening import at_least_float32


class ContextualFactor(RandomModule):
    """Takes the place of B: h `[..., r]` becomes B (I + E) h with E `[r, r]` ~ N(M(h), diag(Omega(h)^2)).

    A network with one hidden layer gives M and G from h, Omega = G^2. The prior of E is N(0, prior_std^2), and both
    M = 0 and Omega = `family.std` hold at the start, for any h.

    The noise of E is one matrix per row and draw, while M and Omega differ from token to token. `kl` is the mean over
    the rows of a batch of the mean over the row's tokens of KL[q(E | h) || p(E)]; padding does not count.

    Args:
        weight: B `[out, r]`.
        family: q(E) given its mean and standard deviation.
        hidden: Units of the hidden layer.
    """

    bias = None
    local = True
    location = ("matrix",)

    def __init__(self, weight: Tensor, family: GaussianWeights, hidden: int = 64):
        super().__init__()
        self.family = family
        rank = weight.shape[1]
        self.matrix = nn.Parameter(weight.detach().float().clone())
        # Flat and with two dimensions each, as PEFT's files need them.
        self.input_weight = nn.Parameter(torch.empty(hidden, rank, device=weight.device))
        self.input_bias = nn.Parameter(torch.empty(hidden, 1, device=weight.device))
        self.output_weight = nn.Parameter(torch.empty(2 * rank**2, hidden, device=weight.device))
        self.output_bias = nn.Parameter(torch.empty(2 * rank**2, 1, device=weight.device))
        for parameter in (self.input_weight, self.input_bias):
            nn.init.uniform_(parameter, -(rank**-0.5), rank**-0.5)
        self._start()
        self._kl: Tensor | None = None
        self._attention_mask: Any = None
        self._begins = True
        self._trained_without_graph = False

    def _start(self) -> None:
        """M = 0 and Omega = std for any h."""
        rank = self.in_features
        with torch.no_grad():
            self.output_weight.zero_()
            self.output_bias.zero_()
            self.output_bias[rank**2 :] = math.sqrt(self.family.std)

    def __getstate__(self) -> dict[str, Any]:
        # What belongs to a running forward carries a graph, which neither copies nor pickles.
        return {**self.__dict__, "_kl": None, "_attention_mask": None}

    @property
    def in_features(self) -> int:
        """r."""
        return self.matrix.shape[1]

    @property
    def out_features(self) -> int:
        """Rows of B."""
        return self.matrix.shape[0]

    @property
    def weight(self) -> Tensor:
        """There is none: always raises."""
        raise NotImplementedError(
            "C-LoRA has no weights to merge or to read: its update depends on the input, in the mean as in a draw. "
            "Predict with the adapter in place."
        )

    @property
    def noise_shapes(self) -> tuple[tuple[int, ...], ...]:
        """One number per element of E."""
        return self.family.noise_shapes

    @property
    def device(self) -> torch.device:
        """That of B."""
        return self.matrix.device

    def embed(self, weight: Tensor) -> None:
        """Restart at B = `weight` `[out, r]` with M = 0."""
        with torch.no_grad():
            self.matrix.copy_(weight)
        self._start()

    def begin_forward(self, inputs: Mapping[str, Any]) -> None:
        """The next forward is a new one, and not gradient checkpointing's second one; `inputs` tell its padding."""
        self._attention_mask = inputs.get("attention_mask")
        self._begins = True

    def distribution(self, context: Tensor) -> dict[str, Tensor]:
        """Parameters `mean` (M) and `log_std` (log Omega) of the family, `[..., r, r]`, from h `[..., r]`."""
        hidden = torch.relu(nn.functional.linear(context, self.input_weight, self.input_bias.squeeze(1)))
        output = nn.functional.linear(hidden, self.output_weight, self.output_bias.squeeze(1))
        mean, root = at_least_float32(output).unflatten(-1, (2, self.in_features, self.in_features)).unbind(-3)
        return {"mean": mean, "log_std": (root.square() + 1e-12).log()}

    def forward(self, value: Tensor) -> Tensor:
        """B (I + E) h: value `[batch, ..., r]`, or `[samples * batch, ..., r]` sample-major when there are draws.

        Raises:
            ValueError: The leading dimension is not samples * batch.
        """
        context = value.to(self.matrix.dtype)
        parameters = self.distribution(context)
        self._note(self.family.kl(parameters, None).total)
        inner = context + _product(parameters["mean"].to(context.dtype), context)
        if self.active_noise is not None:
            std = self.family.standard_deviation(parameters).to(context.dtype)
            inner = inner + self._perturbation(std, self.active_noise.normal[0].to(context.dtype), context)
        return nn.functional.linear(inner, self.matrix).to(value.dtype)

    def _perturbation(self, std: Tensor, noise: Tensor, context: Tensor) -> Tensor:
        """(Omega o noise) h with the noise `[samples, r, r]`; in training with signs of its own for each row."""
        samples, rows = noise.shape[0], context.shape[0]
        check_sample_major(context, samples)
        noise = noise.repeat_interleave(rows // samples, dim=0)
        scaled = std * noise.unflatten(0, (rows, *(1 for _ in context.shape[1:-1])))
        if not (self.family.flipout and self.training and not self.explicit):
            return _product(scaled, context)
        before, after = random_signs(context, self.in_features), random_signs(context, self.in_features)
        return after * _product(scaled, before * context)

    def _note(self, kl: Tensor) -> None:
        """Keep the KL `[rows, ...]` of a forward; recomputed, it would hold activations that checkpointing frees."""
        mean = _mean_over_rows(kl, self._attention_mask)
        if self._begins:
            self._kl, self._begins = mean, False
            self._trained_without_graph = self.training and not mean.requires_grad

    def kl(self) -> KL:
        """Mean over the rows of the last forward, nats; 0 before any.

        Raises:
            RuntimeError: A gradient is wanted of a forward in train mode that kept no graph: reentrant checkpointing.
        """
        if self._kl is None:
            return super().kl()
        if self._trained_without_graph and torch.is_grad_enabled() and self.output_weight.requires_grad:
            raise RuntimeError(
                "the KL of C-LoRA is computed within the forward, which reentrant gradient checkpointing runs without "
                "gradients; use gradient_checkpointing_kwargs={'use_reentrant': False}."
            )
        return KL(self._kl, torch.zeros_like(self._kl))

    def extra_repr(self) -> str:
        """Shape."""
        return f"in_features={self.in_features}, out_features={self.out_features}, hidden={len(self.input_weight)}"


def _product(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Matrices `[..., r, r]` times vectors `[..., r]`."""
    return (matrices @ vectors.unsqueeze(-1)).squeeze(-1)


def _mean_over_rows(values: Tensor, attention_mask: Any) -> Tensor:
    """Mean over rows of the mean over the real tokens of each row, of values `[rows]` or `[rows, tokens]`."""
    real = real_tokens(attention_mask)
    if values.dim() != 2 or real is None or values.shape[0] % real.shape[0] or values.shape[1] > real.shape[1]:
        return values.mean()
    # A head may see the last tokens only; draws have the batch several times.
    real = real[:, -values.shape[1] :].repeat(values.shape[0] // real.shape[0], 1).to(values)
    real = torch.where(real.any(1, keepdim=True), real, 1)
    return ((values * real).sum(1) / real.sum(1)).mean()


def real_tokens(attention_mask: Any) -> Tensor | None:
    """Which tokens are not padding, bool `[batch, tokens]`; None where the mask does not tell.

    Args:
        attention_mask: As models take it: `[batch, tokens]` with 0 for padding, or `[batch, 1, tokens, tokens]` bool
            or additive, where padding is what neither sees nor is seen by another token, or a dict of such.
    """
    if isinstance(attention_mask, Mapping):
        attention_mask = attention_mask.get("full_attention")
    if not isinstance(attention_mask, Tensor) or attention_mask.dim() not in (2, 4):
        return None
    if attention_mask.dim() == 2:
        return attention_mask.bool()
    allowed = attention_mask[:, 0]
    if allowed.dtype != torch.bool:
        allowed = allowed > torch.finfo(allowed.dtype).min / 2
    others = allowed & ~torch.eye(allowed.shape[-1], dtype=torch.bool, device=allowed.device)
    return others.any(-1) | others.any(-2)


@register("C_LORA")
@dataclass
class CLoraConfig(RandomLoraConfig):
    """Config of C-LoRA (arXiv 2505.17773); every field of `peft.LoraConfig` works as there, and:

    Args:
        std: Standard deviation of an element of E at the start.
        prior_std: That of its prior N(0, prior_std^2).
        hidden: Units of the hidden layer of the network that gives q(E) from the input.
        flipout: Whether each row of a training batch has its own signs of the perturbation (arXiv 1803.04386).
            Off, a batch split into equal micro-batches gives exactly the same update.

    Raises:
        ValueError: A value out of range, or an option of LoRA that cannot be combined.
    """

    random_sides: ClassVar[tuple[Side, ...]] = ("B",)

    std: StandardDeviation = 0.2
    prior_std: StandardDeviation = 0.2
    hidden: Size = 64
    flipout: bool = True

    def factor(self, side: Side, module: nn.Linear) -> ContextualFactor:
        """What follows A; A stays deterministic."""
        return ContextualFactor(module.weight.data, self.family(side, *module.weight.shape), self.hidden)

    def family(self, side: Side, rows: int, columns: int) -> GaussianWeights:
        """q(E) given its mean and standard deviation; `columns` is the rank."""
        return GaussianWeights(columns, columns, std=self.std, prior_std=self.prior_std, flipout=self.flipout)


@options_of(CLoraConfig)
class CLora(VariationalMethod):
    """C-LoRA: the update of input x is B (I + E) A x, where q(E) = N(M, diag(Omega^2)) depends on h = A x.

    E is a latent variable of each row (item or text) and layer, not of the whole training set, so its KL is paid once
    per row: the loss is mean over rows of [NLL + beta * sum over layers of mean over tokens of KL[q(E | h) || p(E)]].
    With a context that is constant over the row it is the negative ELBO per row. Else it is not a strict bound: the
    noise is shared by a row's tokens, and the mean over tokens stands for the KL between random functions of h.

    As in the authors' code (github.com/ahra99/c_lora; of the paper only the abstract was at hand): the network
    r -> 64 -> 2 r^2 with ReLU, its application to each token, Omega as a square, the prior's 0.2, Flipout. Different:
    that code multiplies the KL by 1e-6 / 65 and the NLL by 2 or 4 on some data sets, chooses the checkpoint by
    (1 - accuracy) ECE, squashes G by a sigmoid, draws noise for each token, and starts M at random. Its prior N(0,
    0.2^2) is that of I + E; at its true weight it would switch the adapter off, since the identity alone costs
    r / (2 * 0.2^2) nats (100 for r = 8) per row and layer, more than any label can give back. So here E is the
    deviation from plain LoRA, and q starts at the prior.
    """

    name = "c_lora"

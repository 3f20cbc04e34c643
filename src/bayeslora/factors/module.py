"""The module that takes the place of `lora_A[name]` or `lora_B[name]` inside a PEFT layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from bayeslora.factors.inducing import KL, InducingFamily, Noise
from bayeslora.factors.whitening import at_least_float32

__all__ = ["RandomFactor", "materialise"]


_optimizer_steps = 0


def _count_step(*_: Any) -> None:
    global _optimizer_steps
    _optimizer_steps += 1


# Fused optimizers (the Trainer's default) do not raise the version of the tensors they change.
register_optimizer_step_post_hook(_count_step)


class _Held(NamedTuple):
    """Weights computed for the forward under way, and what they were computed from."""

    weight: Tensor
    key: tuple[Any, ...]


class RandomFactor(nn.Module):
    """A random matrix W `[out_features, in_features]` applied as a linear map without bias.

    Its parameters are flat (PEFT strips the adapter's name only from the last or second-last part of a key) and have
    at least two dimensions (PEFT takes smaller LoRA tensors for broken shards).

    Which W a forward uses is decided by `noise`: the posterior mean without noise, else the draw or draws it stands
    for. Noise is kept, not weights, so that gradient checkpointing recomputes the same forward; it is a plain
    attribute because DDP would broadcast a buffer from rank 0.
    """

    bias = None

    def __init__(self, family: InducingFamily, weight: Tensor):
        super().__init__()
        self.family = family
        for name, value in family.initial(weight).items():
            self.register_parameter(name, nn.Parameter(value))
        self.noise: Noise | None = None
        self.explicit = False
        self._held: _Held | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Weights of a running forward carry a graph, which neither copies nor pickles.
        return {**self.__dict__, "_held": None}

    @property
    def in_features(self) -> int:
        """i."""
        return self.family.columns

    @property
    def out_features(self) -> int:
        """o."""
        return self.family.rows

    @property
    def reference(self) -> Tensor:
        """A parameter that every family has, for its device and precision."""
        return self.get_parameter("row_log_diagonal")

    @property
    def parameters_by_name(self) -> dict[str, Tensor]:
        """The tensors that the family's functions take."""
        return {name: value for name, value in self._parameters.items() if value is not None}

    @property
    def active_noise(self) -> Noise | None:
        """Noise of an explicit sampling context, else of the training step, else None: the mean."""
        return self.noise if self.explicit or self.training else None

    def set_noise(self, noise: Noise | None, *, explicit: bool = False) -> None:
        """Use `noise` from now on; `explicit` noise also counts in eval mode."""
        self.noise, self.explicit, self._held = noise, explicit, None

    @property
    def weight(self) -> Tensor:
        """The W of the moment: posterior mean or one draw `[out, in]`, or `[samples, out, in]`."""
        if self._held is not None and self._held.key == self._key():
            return self._held.weight
        return _compute([self])[0]

    def _key(self) -> tuple[Any, ...]:
        # A step of the optimizer changes a version, a load may replace the parameter, a cast its storage: weights held
        # from an earlier forward are never used after any of them.
        state = tuple((id(p), p.data_ptr(), p._version) for p in self._parameters.values() if p is not None)
        return id(self.active_noise), state, torch.is_grad_enabled(), _optimizer_steps

    def embed(self, weight: Tensor) -> None:
        """Restart the posterior so that its mean is `weight` `[out, in]` (exact embedding of a LoRA factor)."""
        with torch.no_grad():
            for name, value in self.family.initial(weight.to(self.reference.device)).items():
                self.get_parameter(name).copy_(value)

    def kl(self) -> KL:
        """KL to the prior in nats, scalars, at the current noise (which only a flow needs)."""
        return stacked_kl([self])[0]

    def forward(self, value: Tensor) -> Tensor:
        """W x: value `[batch, ..., in]`, or `[samples * batch, ..., in]` sample-major when there are several draws."""
        weight = self.weight
        if value.dtype != weight.dtype:
            weight = weight.to(value.dtype)
        if weight.dim() == 2:
            return nn.functional.linear(value, weight)
        samples = weight.shape[0]
        if value.shape[0] % samples:
            raise ValueError(
                f"{samples} posterior samples in one forward need a leading dimension of samples * batch, got inputs "
                f"of shape {tuple(value.shape)}; this module sees packed or routed tokens, so take one sample at a "
                "time (bayeslora.predict(..., chunk_size=1))."
            )
        product = torch.bmm(value.reshape(samples, -1, value.shape[-1]), weight.mT)
        return product.reshape(*value.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Shape and family."""
        return f"in_features={self.in_features}, out_features={self.out_features}, posterior={self.family.posterior}"


def _groups(factors: Sequence[RandomFactor]) -> list[list[int]]:
    """Positions of the factors that can be stacked: same family, device and kind of parameters."""
    groups: dict[Any, list[int]] = {}
    for position, factor in enumerate(factors):
        reference = factor.reference
        key = (factor.family, reference.device, reference.dtype, factor.active_noise is None)
        groups.setdefault(key, []).append(position)
    return list(groups.values())


def _stack_parameters(factors: Sequence[RandomFactor]) -> dict[str, Tensor]:
    """Parameters `[factors, *]`, in at least float32: a Cholesky factor has no lower precision."""
    columns = [factor.parameters_by_name for factor in factors]
    stacked = {name: torch.stack([column[name] for column in columns]) for name in columns[0]}
    return {name: at_least_float32(value) for name, value in stacked.items()}


def _stack_noise(factors: Sequence[RandomFactor]) -> Noise:
    """Noise `[samples, factors, *]` in the precision that the parameters are stacked to."""
    noises = [noise for factor in factors if (noise := factor.active_noise) is not None]
    precision = at_least_float32(factors[0].reference).dtype
    weight, inducing, square, side = (
        torch.stack(parts, dim=1).to(precision) for parts in zip(*(noise[:-1] for noise in noises), strict=True)
    )
    return Noise(weight, inducing, square, side, noises[0].uniform)


def _compute(factors: Sequence[RandomFactor]) -> list[Tensor]:
    """Weights of factors of one group."""
    family, parameters = factors[0].family, _stack_parameters(factors)
    if factors[0].active_noise is None:
        return list(family.mean_weight(parameters).unbind(0))
    draws = family.sample_weight(parameters, _stack_noise(factors))
    if draws.shape[0] == 1:
        return list(draws.squeeze(0).unbind(0))
    return list(draws.unbind(1))


def materialise(factors: Sequence[RandomFactor]) -> None:
    """Compute the weights of all `factors` for the coming forward, stacked by shape into a few batched kernels."""
    for group in _groups(factors):
        members = [factors[position] for position in group]
        for factor, weight in zip(members, _compute(members), strict=True):
            factor._held = _Held(weight, factor._key())


def forget(factors: Sequence[RandomFactor]) -> None:
    """Drop the weights of the forward that has ended."""
    for factor in factors:
        factor._held = None


def stacked_kl(factors: Sequence[RandomFactor]) -> list[KL]:
    """KL of each factor in nats, batched by shape.

    A flow takes the noise of the step under way; without any, 16 draws of a fixed seed of its own.
    """
    result: dict[int, KL] = {}
    for group in _groups(factors):
        members = [factors[position] for position in group]
        parameters = _stack_parameters(members)
        if members[0].active_noise is None:
            shape = members[0].family.q.noise_shape
            generator = torch.Generator().manual_seed(0)
            noise = torch.randn(16, len(members), *shape, generator=generator).to(members[0].reference)
        else:
            noise = _stack_noise(members).inducing
        parts = members[0].family.kl(parameters, noise)
        for index, position in enumerate(group):
            result[position] = KL(parts.inducing[index], parts.conditional[index])
    return [result[position] for position in range(len(factors))]

"""The random factor in the place of `lora_A[name]` or `lora_B[name]` of a PEFT LoRA layer, alone and stacked.

Factors of one family are stacked: a few batched kernels compute the weights and the KL of all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from bayeslora.adapters.random_module import RandomModule, check_sample_major, random_signs, set_plainly
from bayeslora.posteriors.weights.base import KL, Noise, WeightPosterior
from bayeslora.posteriors.weights.packing import VARIATIONAL, pack, unpack
from bayeslora.posteriors.weights.whitening import at_least_float32
from bayeslora.system.processes import full_tensor, is_dtensor

_optimizer_steps = 0


def _count_step(*_: Any) -> None:
    global _optimizer_steps
    _optimizer_steps += 1


# Fused optimizers (the Trainer's default) do not raise the version of the tensors they change.
register_optimizer_step_post_hook(_count_step)


@lru_cache(maxsize=1024)
def _shared(family: WeightPosterior) -> WeightPosterior:
    """One object for equal families: factors are stacked by it at every forward."""
    return family


class RandomFactor(RandomModule):
    """A random matrix W `[out_features, in_features]` applied as a linear map without bias.

    Its parameters are flat (PEFT strips the adapter's name only from the last or second-last part of a key) and have
    at least two dimensions (PEFT takes smaller LoRA tensors for broken shards). Those that no optimizer trains are
    buffers, since PEFT makes every parameter of an adapter trainable. Where the family says so, the variational ones
    are stored as one, `variational`.

    Which W a forward uses is decided by `noise`: the posterior mean without noise, else the draw or draws it stands
    for.
    """

    bias = None

    def __init__(self, family: WeightPosterior, weight: Tensor):
        super().__init__()
        self.family = _shared(family)
        self.location = family.location
        self.layout: dict[str, torch.Size] = {}
        for name, value in self._stored(family.initial(weight)).items():
            if name in family.fixed:
                self.register_buffer(name, value)
            else:
                self.register_parameter(name, nn.Parameter(value))
        self.held: Held | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Weights of a running forward carry a graph, which neither copies nor pickles.
        return {**self.__dict__, "held": None}

    @property
    def in_features(self) -> int:
        """i."""
        return self.family.columns

    @property
    def out_features(self) -> int:
        """o."""
        return self.family.rows

    @property
    def noise_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The family's."""
        return self.family.noise_shapes

    @property
    def draws_in_training(self) -> bool:
        """The family's."""
        return self.family.draws_in_training

    @property
    def reference(self) -> Tensor:
        """One of the parameters, for their device and precision."""
        return next(iter(self._parameters.values()))  # type: ignore[return-value]

    @property
    def device(self) -> torch.device:
        """That of the parameters."""
        return self.reference.device

    @property
    def stored(self) -> dict[str, Tensor]:
        """The tensors as they are trained and saved."""
        held = {**self._parameters, **self._buffers}
        return {name: value for name, value in held.items() if value is not None}

    @property
    def parameters_by_name(self) -> dict[str, Tensor]:
        """The tensors that the family's functions take; views where they are stored side by side."""
        return self.unpacked(self.stored)

    def unpacked(self, stored: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the family's functions take, from stored tensors `[..., *]`."""
        if not self.layout:
            return stored
        others = {name: value for name, value in stored.items() if name != VARIATIONAL}
        return others | unpack(stored[VARIATIONAL], self.layout)

    def renew(self, tensors: dict[str, Tensor], prefix: str) -> None:
        """Put side by side, in place, what files of format version 1 hold one by one, under names with `prefix`."""
        names = {name: f"{prefix}{name}" for name in self.layout}
        if names and all(name in tensors for name in names.values()):
            tensors[f"{prefix}{VARIATIONAL}"] = pack({name: tensors.pop(stored) for name, stored in names.items()})

    def _stored(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The family's tensors as they are stored, and their layout noted."""
        if not self.family.packed:
            return tensors
        apart = {*self.family.location, *self.family.fixed}
        packed = {name: value for name, value in sorted(tensors.items()) if name not in apart}
        self.layout = {name: value.shape for name, value in packed.items()}
        return {name: value for name, value in tensors.items() if name in apart} | {VARIATIONAL: pack(packed)}

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        self.renew(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def set_noise(self, noise: Noise | None, *, explicit: bool = False) -> None:
        """As the base class; weights of an earlier forward are dropped."""
        super().set_noise(noise, explicit=explicit)
        set_plainly(self, "held", None)

    @property
    def weight(self) -> Tensor:
        """The W of the moment: posterior mean or one draw `[out, in]`, or `[samples, out, in]`."""
        held = self.held
        # A compiled forward has computed its weights itself, just before.
        if held is not None and (torch.compiler.is_compiling() or held.state == self.state()):
            return held.weight
        return Stack([self]).weights()[0]

    def state(self) -> tuple[Any, ...]:
        """What a weight is computed from: another state, another weight.

        A step of the optimizer changes a version, a load may replace the parameter, a cast its storage.
        """
        tensors = (*self._parameters.values(), *self._buffers.values())
        versions = [(id(value), value.data_ptr(), value._version) for value in tensors if value is not None]
        return id(self.active_noise), torch.is_grad_enabled(), _optimizer_steps, versions

    def embed(self, weight: Tensor) -> None:
        """Restart the posterior so that its mean is `weight` `[out, in]` (exact embedding of a LoRA factor)."""
        with torch.no_grad():
            for name, value in self.family.initial(weight.to(self.device)).items():
                if name not in self.family.of_layer:
                    self.parameters_by_name[name].copy_(value)

    def kl(self) -> KL:
        """KL to the prior in nats, scalars, at the current noise (which only a flow needs)."""
        return Stack([self]).kl()

    def forward(self, value: Tensor) -> Tensor:
        """W x: value `[batch, ..., in]`, or `[samples * batch, ..., in]` sample-major when there are several draws."""
        weight = self.weight.to(value.dtype)
        if not (self.family.flipout and self.training and not self.explicit and self.noise is not None):
            return self._apply_weight(weight, value)
        # One draw for the step, with signs of its own for each row: s o (dW (r o x)). Checkpointing restores the
        # state of torch's generator, so the signs are the same when the forward is computed again.
        mean = self.family.mean_weight(self.parameters_by_name).to(value.dtype)
        signs = [random_signs(value, features) for features in (self.in_features, self.out_features)]
        return nn.functional.linear(value, mean) + signs[1] * self._apply_weight(weight - mean, signs[0] * value)

    def _apply_weight(self, weight: Tensor, value: Tensor) -> Tensor:
        if weight.dim() == 2:
            return nn.functional.linear(value, weight)
        samples = weight.shape[0]
        check_sample_major(value, samples)
        product = torch.bmm(value.reshape(samples, -1, value.shape[-1]), weight.mT)
        return product.reshape(*value.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Shape and family."""
        return f"in_features={self.in_features}, out_features={self.out_features}, family={type(self.family).__name__}"


class Stack:
    """Factors of one family, device and kind of noise, and their parameters `[factors, *]` as they are now.

    The weights of a forward and the KL of its loss share the stacked parameters, so that the gradients of both meet
    there and reach each factor once.
    """

    def __init__(self, factors: Sequence[RandomFactor]):
        self.factors = factors
        self.parameters = _stacked_parameters(factors)

    def weights(self) -> list[Tensor]:
        """The W of each factor `[out, in]`, or `[samples, out, in]` where there are several draws."""
        first = self.factors[0]
        if first.active_noise is None:
            return list(first.family.mean_weight(self.parameters).unbind(0))
        draw = first.family.sample_weight if first.explicit else first.family.training_weight
        draws = draw(self.parameters, _stacked_noise(self.factors))
        return list(draws.squeeze(0).unbind(0)) if draws.shape[0] == 1 else list(draws.unbind(1))

    def kl(self) -> KL:
        """Sum of the factors' KL in nats, scalars.

        An estimated KL takes the noise of the step under way; without any, 16 draws of a fixed seed of its own.
        """
        parts = self.factors[0].family.kl(self.parameters, _kl_noise(self.factors))
        return KL(parts.inducing.sum(), parts.conditional.sum())


class Held(NamedTuple):
    """The weight of a factor, computed for the forward under way, and what it was computed from."""

    weight: Tensor
    state: tuple[Any, ...]
    stack: Stack | None
    """Where the KL of the loss finds the parameters; without gradients it has no use for them."""


def materialise(factors: Iterable[RandomFactor]) -> None:
    """Compute the weights of all `factors` for the coming forward, stacked by shape.

    Factors that FSDP2 has sharded compute theirs inside their layer, where FSDP2 gathers the parameters and reduces
    the gradients.
    """
    for group in _groups(factors):
        if is_dtensor(group[0].reference):
            continue
        stack = Stack(group)
        for factor, weight in zip(group, stack.weights(), strict=True):
            state = () if torch.compiler.is_compiling() else factor.state()
            set_plainly(factor, "held", Held(weight, state, stack if torch.is_grad_enabled() else None))


def forget(factors: Iterable[RandomFactor]) -> None:
    """Drop the weights of the forward that has ended."""
    for factor in factors:
        set_plainly(factor, "held", None)


def stacked_kl(factors: Sequence[RandomFactor]) -> list[KL]:
    """KL of all factors in nats, scalars, a sum for each stack."""
    return [stack.kl() for stack in _held_stacks(factors) or map(Stack, _groups(factors))]


def _held_stacks(factors: Sequence[RandomFactor]) -> list[Stack]:
    """The stacks of the last forward, where they hold exactly these factors, as they still are."""
    stacks: dict[int, Stack] = {}
    for factor in factors:
        if factor.held is None or factor.held.stack is None or factor.held.state != factor.state():
            return []
        stacks[id(factor.held.stack)] = factor.held.stack
    exactly = sum(len(stack.factors) for stack in stacks.values()) == len(factors)
    return list(stacks.values()) if exactly else []


def _groups(factors: Iterable[RandomFactor]) -> list[list[RandomFactor]]:
    """Factors that can be stacked: same family, device and kind of parameters (sharded or not) and of noise."""
    groups: dict[Any, list[RandomFactor]] = {}
    for factor in factors:
        reference = factor.reference
        kind = reference.device, reference.dtype, is_dtensor(reference)
        key = (id(factor.family), *kind, factor.active_noise is None)
        groups.setdefault(key, []).append(factor)
    return list(groups.values())


def _stacked_parameters(factors: Sequence[RandomFactor]) -> dict[str, Tensor]:
    """Parameters `[factors, *]`, in at least float32: a Cholesky factor has no lower precision.

    Between forwards FSDP2 keeps shards of them, and the KL is computed then, by every process alike.
    """
    columns = [factor.stored for factor in factors]
    stacked = {name: torch.stack([full_tensor(column[name]) for column in columns]) for name in columns[0]}
    return factors[0].unpacked({name: at_least_float32(value) for name, value in stacked.items()})


def _stacked_noise(factors: Sequence[RandomFactor]) -> Noise:
    """Noise `[samples, factors, *]` in the precision that the parameters are stacked to."""
    noises = [noise for noise in (factor.active_noise for factor in factors) if noise is not None]
    numbers = torch.stack([noise.numbers for noise in noises], dim=1)
    return noises[0]._replace(numbers=numbers.to(at_least_float32(factors[0].reference).dtype))


def _kl_noise(factors: Sequence[RandomFactor], draws: int = 16) -> Noise | None:
    if not factors[0].family.kl_is_estimate:
        return None
    if factors[0].active_noise is not None:
        return _stacked_noise(factors)
    generator, to = torch.Generator().manual_seed(0), factors[0].reference
    shapes = factors[0].noise_shapes
    numbers = torch.randn(draws, len(factors), sum(map(math.prod, shapes)), generator=generator).to(to)
    uniform = torch.rand(draws, generator=generator).to(to)
    return Noise(numbers, shapes, uniform, torch.arange(draws, device=to.device))

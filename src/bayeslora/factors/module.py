"""Random modules of a PEFT LoRA layer, above all the factor in the place of `lora_A[name]` or `lora_B[name]`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from bayeslora.distributed import is_dtensor, whole
from bayeslora.factors.family import KL, Family, Noise
from bayeslora.factors.whitening import at_least_float32

__all__ = ["RandomFactor", "RandomModule", "check_sample_major", "forget", "materialise", "random_signs", "stacked_kl"]


_optimizer_steps = 0


def _count_step(*_: Any) -> None:
    global _optimizer_steps
    _optimizer_steps += 1


# Fused optimizers (the Trainer's default) do not raise the version of the tensors they change.
register_optimizer_step_post_hook(_count_step)


class RandomModule(nn.Module, ABC):
    """A part of an adapter whose forward depends on a draw.

    Noise is kept, not what is computed from it, so that gradient checkpointing recomputes the same forward; it is a
    plain attribute because DDP would broadcast a buffer from rank 0.
    """

    local: ClassVar[bool] = False
    """Whether `kl` is that of latent variables of each row of a batch, and not of the whole data set."""
    location: tuple[str, ...] = ()
    """Names of the parameters that are ordinary LoRA matrices; the others are variational."""

    def __init__(self) -> None:
        super().__init__()
        self.noise: Noise | None = None
        self.explicit = False

    @property
    @abstractmethod
    def noise_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the normal noise of one draw."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the noise belongs."""

    @property
    def draws_in_training(self) -> bool:
        """Whether training uses draws too, and not prediction alone."""
        return True

    @property
    def active_noise(self) -> Noise | None:
        """Noise of an explicit sampling context, else of the training step, else None: the mean."""
        return self.noise if self.explicit or (self.training and self.draws_in_training) else None

    def set_noise(self, noise: Noise | None, *, explicit: bool = False) -> None:
        """Use `noise` from now on; `explicit` noise also counts in eval mode."""
        self.noise, self.explicit = noise, explicit

    def begin_forward(self, inputs: Mapping[str, Any]) -> None:
        """A forward of the model begins, with these keyword arguments."""

    def embed(self, weight: Tensor) -> None:
        """Restart such that the mean is the LoRA matrix `weight` `[out, in]`.

        Raises:
            NotImplementedError: The module does not take the place of a LoRA matrix.
        """
        raise NotImplementedError(f"{type(self).__name__} does not take the place of a LoRA matrix.")

    def kl(self) -> KL:
        """KL from posterior to prior in nats, scalars; none where there is nothing to learn.

        Where it is `local`, the mean over the rows of the last forward.
        """
        zero = torch.zeros((), device=self.device)
        return KL(zero, zero)


class _Held(NamedTuple):
    """Weights computed for the forward under way, and what they were computed from."""

    weight: Tensor
    key: tuple[Any, ...]


class RandomFactor(RandomModule):
    """A random matrix W `[out_features, in_features]` applied as a linear map without bias.

    Its parameters are flat (PEFT strips the adapter's name only from the last or second-last part of a key) and have
    at least two dimensions (PEFT takes smaller LoRA tensors for broken shards). Those that no optimizer trains are
    buffers, since PEFT makes every parameter of an adapter trainable.

    Which W a forward uses is decided by `noise`: the posterior mean without noise, else the draw or draws it stands
    for.
    """

    bias = None

    def __init__(self, family: Family, weight: Tensor):
        super().__init__()
        self.family = family
        self.location = family.location
        for name, value in family.initial(weight).items():
            if name in family.fixed:
                self.register_buffer(name, value)
            else:
                self.register_parameter(name, nn.Parameter(value))
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
    def parameters_by_name(self) -> dict[str, Tensor]:
        """The tensors that the family's functions take."""
        held = {**self._parameters, **self._buffers}
        return {name: value for name, value in held.items() if value is not None}

    def set_noise(self, noise: Noise | None, *, explicit: bool = False) -> None:
        """As the base class; weights of an earlier forward are dropped."""
        super().set_noise(noise, explicit=explicit)
        self._held = None

    @property
    def weight(self) -> Tensor:
        """The W of the moment: posterior mean or one draw `[out, in]`, or `[samples, out, in]`."""
        # A compiled forward has computed its weights itself, just before.
        if self._held is not None and (torch.compiler.is_compiling() or self._held.key == self._key()):
            return self._held.weight
        return _compute([self])[0]

    def _key(self) -> tuple[Any, ...]:
        # A step of the optimizer changes a version, a load may replace the parameter, a cast its storage: weights held
        # from an earlier forward are never used after any of them.
        state = tuple((id(p), p.data_ptr(), p._version) for p in self.parameters_by_name.values())
        return id(self.active_noise), state, torch.is_grad_enabled(), _optimizer_steps

    def embed(self, weight: Tensor) -> None:
        """Restart the posterior so that its mean is `weight` `[out, in]` (exact embedding of a LoRA factor)."""
        with torch.no_grad():
            for name, value in self.family.initial(weight.to(self.device)).items():
                self.parameters_by_name[name].copy_(value)

    def kl(self) -> KL:
        """KL to the prior in nats, scalars, at the current noise (which only a flow needs)."""
        return stacked_kl([self])[0]

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


def check_sample_major(value: Tensor, samples: int) -> None:
    """Whether `value` can be `[samples * batch, ...]`.

    Raises:
        ValueError: Its leading dimension is no multiple of `samples`.
    """
    if value.shape[0] % samples:
        raise ValueError(
            f"{samples} posterior samples in one forward need a leading dimension of samples * batch, got inputs of "
            f"shape {tuple(value.shape)}; this module sees packed or routed tokens, so take one sample at a time "
            "(bayeslora.predict(..., chunk_size=1))."
        )


def random_signs(value: Tensor, features: int) -> Tensor:
    """Random signs `[rows, 1, ..., features]`, one vector per row of `value` `[rows, ..., *]`."""
    shape = (value.shape[0], *(1 for _ in value.shape[1:-1]), features)
    return torch.randint(0, 2, shape, device=value.device).to(value.dtype) * 2 - 1


def _groups(factors: Sequence[RandomFactor]) -> list[list[int]]:
    """Positions of the factors that can be stacked: same family, device and kind of parameters."""
    groups: dict[Any, list[int]] = {}
    for position, factor in enumerate(factors):
        reference = factor.reference
        key = (factor.family, reference.device, reference.dtype, factor.active_noise is None)
        groups.setdefault(key, []).append(position)
    return list(groups.values())


def _stack_parameters(factors: Sequence[RandomFactor]) -> dict[str, Tensor]:
    """Parameters `[factors, *]`, in at least float32: a Cholesky factor has no lower precision.

    Between forwards FSDP2 keeps shards of them, and the KL is computed then, by every process alike.
    """
    columns = [factor.parameters_by_name for factor in factors]
    stacked = {name: torch.stack([whole(column[name]) for column in columns]) for name in columns[0]}
    return {name: at_least_float32(value) for name, value in stacked.items()}


def _stack_noise(factors: Sequence[RandomFactor]) -> Noise:
    """Noise `[samples, factors, *]` in the precision that the parameters are stacked to."""
    noises = [noise for noise in (factor.active_noise for factor in factors) if noise is not None]
    precision = at_least_float32(factors[0].reference).dtype
    parts = zip(*(noise.normal for noise in noises), strict=True)
    normal = tuple(torch.stack(part, dim=1).to(precision) for part in parts)
    return noises[0]._replace(normal=normal)


def _compute(factors: Sequence[RandomFactor]) -> list[Tensor]:
    """Weights of factors of one group."""
    family, parameters = factors[0].family, _stack_parameters(factors)
    if factors[0].active_noise is None:
        return list(family.mean_weight(parameters).unbind(0))
    draw = family.sample_weight if factors[0].explicit else family.training_weight
    draws = draw(parameters, _stack_noise(factors))
    if draws.shape[0] == 1:
        return list(draws.squeeze(0).unbind(0))
    return list(draws.unbind(1))


def materialise(factors: Sequence[RandomFactor]) -> None:
    """Compute the weights of all `factors` for the coming forward, stacked by shape into a few batched kernels.

    Factors that FSDP2 has sharded compute theirs inside their layer, where FSDP2 gathers the parameters and reduces
    the gradients.
    """
    factors = [factor for factor in factors if not is_dtensor(factor.reference)]
    for group in _groups(factors):
        members = [factors[position] for position in group]
        for factor, weight in zip(members, _compute(members), strict=True):
            factor._held = _Held(weight, () if torch.compiler.is_compiling() else factor._key())


def forget(factors: Sequence[RandomFactor]) -> None:
    """Drop the weights of the forward that has ended."""
    for factor in factors:
        factor._held = None


def stacked_kl(factors: Sequence[RandomFactor]) -> list[KL]:
    """KL of each factor in nats, batched by shape.

    An estimated KL takes the noise of the step under way; without any, 16 draws of a fixed seed of its own.
    """
    result: dict[int, KL] = {}
    for group in _groups(factors):
        members = [factors[position] for position in group]
        parts = members[0].family.kl(_stack_parameters(members), _kl_noise(members))
        for index, position in enumerate(group):
            result[position] = KL(parts.inducing[index], parts.conditional[index])
    return [result[position] for position in range(len(factors))]


def _kl_noise(factors: Sequence[RandomFactor], draws: int = 16) -> Noise | None:
    if not factors[0].family.kl_is_estimate:
        return None
    if factors[0].active_noise is not None:
        return _stack_noise(factors)
    generator, to = torch.Generator().manual_seed(0), factors[0].reference
    shapes = ((draws, len(factors), *shape) for shape in factors[0].noise_shapes)
    normal = tuple(torch.randn(shape, generator=generator).to(to) for shape in shapes)
    uniform = torch.rand(draws, generator=generator).to(to)
    return Noise(normal, uniform, torch.arange(draws, device=to.device))

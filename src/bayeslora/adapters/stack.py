"""Random factors of one family evaluated together, in a few batched kernels: their weights and their KL."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from bayeslora.adapters.random_module import set_plainly
from bayeslora.posteriors.weights.base import KL, Noise
from bayeslora.posteriors.weights.whitening import at_least_float32
from bayeslora.system.processes import full_tensor, is_dtensor

if TYPE_CHECKING:
    from bayeslora.adapters.random_factor import RandomFactor

__all__ = ["Held", "Stack", "forget", "materialise", "stacked_kl"]


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

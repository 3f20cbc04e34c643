"""Memory of one device: what it is made of, and how 4-bit weights and sharding change it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from torch import Tensor, nn

from bayeslora.models.layers import base_model, outermost_layers
from bayeslora.planning.tracing import tensor_bytes

FOUR_BIT = 4 + (8 + 32 / 256) / 64
"""Bits per weight of NF4 with double quantisation (QLoRA, arXiv 2305.14314): 4, for each 64 weights a constant of 8
bits, and for each 256 constants one of 32 bits."""

_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_bytes(text: str) -> int:
    """Bytes of "80GB" (10^9), "80GiB" (2^30), "512MB", or a plain number.

    Raises:
        ValueError: The text is no size.
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([KMGT]?)(I?)B?\s*", text.upper())
    if found is None or (found[3] and not found[2]) or float(found[1]) <= 0:
        raise ValueError(f"expected a memory size such as 80GB (80 * 10^9 bytes) or 80GiB (80 * 2^30), got {text!r}.")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** _UNITS[found[2]])


@dataclass(frozen=True)
class Budget:
    """What one device has, and how much of it is left alone.

    Args:
        device_memory: Bytes of one device.
        headroom: Share kept free for the CUDA context, the libraries' workspaces and fragmentation. An assumption, not
            a measurement.

    Raises:
        ValueError: The share is not in [0, 1).
    """

    device_memory: int
    headroom: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.headroom < 1:
            raise ValueError(f"headroom must lie in [0, 1), got {self.headroom}.")

    @property
    def usable(self) -> int:
        """Bytes that a plan may fill."""
        return int(self.device_memory * (1 - self.headroom))


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the peak.

    Args:
        weights: The frozen base model, buffers included.
        adapters: What is trained.
        gradients: Of what is trained.
        optimizer: State of AdamW, two numbers for each that is trained.
        activations: All else: kept activations and their gradients, weights of the draws, logits, temporary tensors;
            also what 4-bit weights and sharding need on top.
    """

    weights: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """Their sum."""
        return self.weights + self.adapters + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class Weights:
    """Bytes of a model's parameters and buffers, by what can be done with them."""

    frozen: int
    trained: int
    trained_numbers: int
    quantisable: int
    """Of `frozen`, what bitsandbytes would store in 4 bits."""
    quantisable_numbers: int
    largest_quantisable: int
    """The largest weight among them: it is written out in full precision where it is used."""
    largest_layer: int
    outside_layers: int
    """What lies in no transformer layer: embeddings, head, last norm."""

    @staticmethod
    def of(model: nn.Module) -> Weights:
        """Those of `model`."""
        parameters = list(model.parameters())
        everything = [*parameters, *model.buffers()]
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        linear = [weight for weight in _quantisable(model) if not weight.requires_grad]
        layers = [tensor_bytes([*layer.parameters(), *layer.buffers()]) for layer in outermost_layers(model)]
        return Weights(
            frozen=tensor_bytes(everything) - tensor_bytes(trained),
            trained=tensor_bytes(trained),
            trained_numbers=sum(parameter.numel() for parameter in trained),
            quantisable=tensor_bytes(linear),
            quantisable_numbers=sum(weight.numel() for weight in linear),
            largest_quantisable=max((weight.nbytes for weight in linear), default=0),
            largest_layer=max(layers, default=0),
            outside_layers=tensor_bytes(everything) - sum(layers),
        )

    def memory(self, activations: int, *, training: bool) -> Memory:
        """With activations of this many bytes; gradients and optimizer only while training."""
        if not training:
            return Memory(self.frozen, self.trained, 0, 0, activations)
        return Memory(self.frozen, self.trained, self.trained, 2 * self.trained, activations)

    def in_four_bit(self, memory: Memory) -> Memory:
        """`memory` with the linear layers in 4 bits: one at a time is written out in full."""
        stored = int(self.quantisable_numbers * FOUR_BIT / 8)
        return replace(
            memory,
            weights=memory.weights - self.quantisable + stored,
            activations=memory.activations + self.largest_quantisable,
        )

    def sharded(self, memory: Memory, devices: int) -> Memory:
        """`memory` of one of `devices` that share weights, gradients and optimizer state (FSDP, full sharding).

        On top come, whole, what lies outside of the layers and two layers: the one at work and the next one, which is
        fetched meanwhile. Activations stay, as each device has its own items.
        """
        parts = {name: getattr(memory, name) // devices for name in ("weights", "adapters", "gradients", "optimizer")}
        gathered = self.outside_layers + 2 * self.largest_layer
        return replace(memory, **parts, activations=memory.activations + gathered)


def _quantisable(model: nn.Module) -> list[Tensor]:
    """Weights of the linear layers but the head: bitsandbytes replaces these modules and nothing else.

    The experts of a mixture are parameters of three dimensions since transformers 5, not linear layers, and stay.
    """
    base = base_model(model)
    heads = [base.get_output_embeddings(), getattr(base, "score", None), getattr(base, "classifier", None)]
    left_out = {id(module) for head in heads if head is not None for module in head.modules()}
    return [module.weight for module in base.modules() if isinstance(module, nn.Linear) and id(module) not in left_out]

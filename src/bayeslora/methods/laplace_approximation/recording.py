"""What the linear maps of LoRA get in a forward, and the gradients of its class logits at their outputs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from bayeslora.adapters.random_factor import RandomFactor
from bayeslora.models.layers import evaluating
from bayeslora.scoring import ChoiceBatch
from bayeslora.scoring.trunk_cache import TrunkCache, served


def lora_maps(model: nn.Module, layers: Literal["all", "last"] = "all") -> dict[str, nn.Linear]:
    """The linear maps A and B of the active LoRA adapters of `model`, by name, in the order of the model.

    Of a random adapter those of its mean.

    Args:
        model: With adapters.
        layers: "last": only those of the last adapted transformer layer (or of an adapted head above all layers).

    Raises:
        ValueError: There is no LoRA adapter, or one that is not two linear maps (DoRA, embeddings, convolutions).
    """
    adapted = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    if layers == "last":
        adapted = [(name, module) for name, module in adapted if _block(name) == _block(adapted[-1][0])]
    maps = {
        f"{name}.{part}.{adapter}": getattr(module, part)[adapter]
        for name, module in adapted
        for adapter in module.active_adapters
        for part in _parts(name, module, adapter)
    }
    if not maps:
        raise ValueError("the Laplace approximation needs a model with an active LoRA adapter, but this one has none.")
    return maps


def _block(name: str) -> str:
    """A module's name up to its first number, which counts the transformer layers; without a number, all of it."""
    found = re.match(r"(?:.*?\.)?\d+(?=\.)", name)
    return found.group() if found else name


def _parts(name: str, layer: Any, adapter: str) -> tuple[str, ...]:
    if adapter not in layer.lora_A and adapter not in layer.lora_embedding_A:
        return ()
    kinds = [type(container[adapter]) for container in (layer.lora_A, layer.lora_B) if adapter in container]
    if len(kinds) < 2 or not {nn.Linear, RandomFactor}.issuperset(kinds) or adapter in layer.lora_variant:
        raise ValueError(
            f"the Laplace approximation needs plain LoRA on linear layers (no DoRA, no embeddings, no convolutions), "
            f"but {name} has another kind of adapter; leave it out of target_modules."
        )
    return "lora_A", "lora_B"


class Recording:
    """One forward of a batch through linear maps: their inputs, and the way to gradients at their outputs."""

    def __init__(self, batch_size: int, rows_per_item: int):
        self.batch_size, self.rows_per_item = batch_size, rows_per_item
        self._calls: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def add(self, name: str, inputs: Tensor, outputs: Tensor) -> None:
        """Note one call of a map.

        Args:
            name: Of the map.
            inputs: [rows, ..., in], the rows of an item one after the other.
            outputs: [rows, ..., out], in the graph of the forward.

        Raises:
            ValueError: The batch is not the leading dimension.
        """
        if inputs.shape[0] != self.batch_size * self.rows_per_item:
            raise ValueError(
                f"the Laplace approximation needs gradients of single items, but {name} got an input of shape "
                f"{tuple(inputs.shape)}, whose leading dimension is not the batch of {self.batch_size}; leave this "
                "layer out of target_modules."
            )
        self._calls.setdefault(name, []).append((inputs.detach(), outputs))

    def inputs(self, name: str) -> Tensor:
        """Inputs of the map [batch, tokens, in]; the calls of a map that is used twice follow each other."""
        return self._joined([inputs for inputs, _ in self._outcome(name)])

    def gradients(self, logits: Tensor, weights: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Gradients of each item's sum(weights * logits) at the outputs of the named maps, [batch, tokens, out] each.

        Args:
            logits: Class logits [batch, choices] of the recorded forward.
            weights: [batch, choices].
            names: Of the maps.
        """
        outputs = {name: [output for _, output in self._outcome(name)] for name in names}
        flat = [output for calls in outputs.values() for output in calls]
        found = iter(torch.autograd.grad(logits, flat, weights, retain_graph=True, materialize_grads=True))
        return {name: self._joined([next(found) for _ in calls]) for name, calls in outputs.items()}

    def _outcome(self, name: str) -> list[tuple[Tensor, Tensor]]:
        if name not in self._calls:
            raise ValueError(f"{name} took no part in the forward; enable the adapter, and do not merge it.")
        return self._calls[name]

    def _joined(self, calls: list[Tensor]) -> Tensor:
        """[batch, tokens, width] in float32 or more."""
        tokens = [call.reshape(self.batch_size, -1, call.shape[-1]) for call in calls]
        joined = tokens[0] if len(tokens) == 1 else torch.cat(tokens, dim=1)
        return joined.to(torch.promote_types(joined.dtype, torch.float32))


def record(
    model: nn.Module, batch: ChoiceBatch, maps: Mapping[str, nn.Linear], trunk_cache: TrunkCache | None = None
) -> tuple[Tensor, Recording]:
    """Class logits [batch, choices] of a forward in eval mode, and its recording.

    The graph begins at the first of the maps, whether or not any parameter is trained.
    """
    batch = batch.suited_to(model)
    recording = Recording(batch.batch_size, batch.rows_per_item)

    def note(name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        recording.add(name, args[0], output.requires_grad_())

    handles = [module.register_forward_hook(partial(note, name)) for name, module in maps.items()]
    try:
        with evaluating(model), served(batch, trunk_cache), torch.enable_grad():
            return batch.choice_logits(model), recording
    finally:
        for handle in handles:
            handle.remove()

"""Keep what the frozen layers below the first adapter compute for each item, so that it is computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from bayeslora.scoring import ChoiceBatch

__all__ = ["TrunkCache"]


class TrunkCache:
    """Outputs of the frozen trunk, one per item, in memory.

    The trunk is the run of transformer layers below the first one with a trainable parameter. Its output depends on
    the item alone, so later epochs, and every later draw, method or evaluation on the same base model, read it here.
    Exact up to the rounding that another padding of the batch brings.

    Args:
        model: A model with adapters.
        limit: Bytes beyond which no further items are kept.
    """

    def __init__(self, model: nn.Module, limit: int = 4 * 2**30):
        self.limit = limit
        self._layers = frozen_trunk(model)
        self._rows: dict[str, Tensor] = {}

    @property
    def skipped(self) -> int:
        """Layers that a cached item does not run; 0 where caching does not apply (nothing frozen, or dropout in it)."""
        return len(self._layers)

    @property
    def size(self) -> int:
        """Bytes held."""
        return sum(row.nbytes for row in self._rows.values())

    def __len__(self) -> int:
        """Items held."""
        return len(self._rows)

    def rebind(self, model: nn.Module) -> TrunkCache:
        """The same items for another set of adapters above the same layers of the same base model.

        Raises:
            ValueError: The trunk of `model` has another length.
        """
        other = TrunkCache(model)
        if other.skipped != self.skipped:
            raise ValueError(f"the trunk has {other.skipped} layers here and {self.skipped} layers in the cache.")
        other._rows = self._rows
        return other

    @contextmanager
    def serve(self, batch: Any) -> Iterator[None]:
        """Forwards of `batch` inside this context skip the trunk if all items are known, else they are noted."""
        if not self._layers or not isinstance(batch, ChoiceBatch) or "lengths" not in batch:
            yield
            return
        keys = _keys(batch)
        if all(key in self._rows for key in keys):
            with self._skipping(self._assemble(batch, keys)):
                yield
        else:
            with self._noting(batch, keys):
                yield

    def _assemble(self, batch: ChoiceBatch, keys: list[str]) -> Tensor:
        """Hidden states [batch, tokens, hidden], zero where there is padding (on the left)."""
        rows = [self._rows[key] for key in keys]
        ids = batch["input_ids"]
        hidden = torch.zeros(*ids.shape, rows[0].shape[-1], dtype=rows[0].dtype, device=ids.device)
        for index, row in enumerate(rows):
            hidden[index, -row.shape[0] :] = row.to(ids.device)
        return hidden

    @contextmanager
    def _skipping(self, hidden: Tensor) -> Iterator[None]:
        for layer in self._layers:
            layer.forward = lambda *args, **kwargs: hidden
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.forward

    @contextmanager
    def _noting(self, batch: ChoiceBatch, keys: list[str]) -> Iterator[None]:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            # A layer that returns more than its hidden states could not be skipped; beyond the limit nothing is added.
            if not isinstance(output, Tensor) or self.size > self.limit:
                return
            for index, (key, length) in enumerate(zip(keys, batch["lengths"].tolist(), strict=True)):
                self._rows[key] = output[index, -length:].detach().to("cpu", copy=True)

        handle = self._layers[-1].register_forward_hook(note)
        try:
            yield
        finally:
            handle.remove()


def _keys(batch: ChoiceBatch) -> list[str]:
    """A name for each item: its tokens and their positions, which tell the packed choices apart."""
    rows = zip(batch["input_ids"].cpu(), batch["position_ids"].cpu(), batch["lengths"].tolist(), strict=True)
    return [
        hashlib.sha256(ids[-length:].numpy().tobytes() + positions[-length:].numpy().tobytes()).hexdigest()
        for ids, positions, length in rows
    ]


def frozen_trunk(model: nn.Module) -> list[nn.Module]:
    """The transformer layers below the first that is adapted or trained; empty where caching does not apply."""
    layers = _outermost_layers(model)
    count = 0
    while count < len(layers) and not _changes(layers[count]):
        count += 1
    trunk = layers[:count]
    getter: Any = getattr(model, "get_input_embeddings", lambda: None)
    embeddings = getter()
    trained_below = embeddings is not None and _changes(embeddings)
    above = {id(module) for layer in layers[count:] for module in layer.modules()}
    drops = any(_drops(module) for module in model.modules() if id(module) not in above)
    attention_drops = bool(getattr(getattr(model, "config", None), "attention_dropout", 0))
    return [] if trained_below or drops or attention_drops else trunk


def _drops(module: nn.Module) -> bool:
    """Whether `module` is dropout, or calls it as a function with a probability of its own (OPT, XGLM)."""
    if isinstance(module, nn.Dropout):
        return module.p > 0
    rates = (module.__dict__.get(name) for name in ("dropout", "hidden_dropout", "activation_dropout"))
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


def _outermost_layers(model: nn.Module) -> list[nn.Module]:
    layers: list[nn.Module] = []
    covered: set[int] = set()
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer) and id(module) not in covered:
            layers.append(module)
            covered |= {id(child) for child in module.modules()}
    return layers


def _changes(module: nn.Module) -> bool:
    return any(isinstance(child, LoraLayer) for child in module.modules()) or any(
        parameter.requires_grad for parameter in module.parameters()
    )

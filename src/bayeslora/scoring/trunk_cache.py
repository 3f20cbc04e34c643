"""Keep what the frozen layers below the first adapter compute for each item, so that it is computed once."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from bayeslora.models.layers import base_model, forwards_replaced, outermost_layers, text_config
from bayeslora.models.quantization import plain_tensors
from bayeslora.scoring import ChoiceBatch
from bayeslora.scoring.trunk_store import DiskStore, MemoryStore, Store

DEFAULT_LIMIT = 4 * 2**30
"""Bytes."""

_FORMAT = 1
"""Part of the digest: to be raised when the meaning of the kept rows or of their keys changes."""


class TrunkCache:
    """Outputs of the frozen trunk, one per item, in memory or on disk.

    The trunk is the run of transformer layers below the first one with a trainable parameter. Its output depends on
    the item alone, so later epochs, and every later draw, method or evaluation on the same base model, read it here.
    Exact up to the rounding that another padding of the batch brings (docs/guides/trunk_cache.md).

    Args:
        model: A model with adapters.
        limit: Bytes beyond which no further items are kept; on disk, for each trunk.
        folder: Keep the items in memory-mapped files here, in a subfolder named by `trunk_digest`, for other processes
            and later runs. Default: in memory.

    Attributes:
        forwards: Forwards of the model that were asked for inside `serve`, where it applies.
        served: Those of them that did not run the trunk.

    Raises:
        NotADirectoryError: There is a file at `folder`.
    """

    def __init__(self, model: nn.Module, limit: int = DEFAULT_LIMIT, folder: str | Path | None = None):
        self.limit, self.folder = limit, folder
        self.forwards = self.served = 0
        self._model, self._layers = model, frozen_trunk(model)
        self._all_layers = len(outermost_layers(model))
        self._store: Store = MemoryStore(limit)
        if folder is not None and self._layers:
            self._store = DiskStore(Path(folder).expanduser() / _folder_name(model, self._layers), limit)

    @property
    def skipped(self) -> int:
        """Layers that a cached item does not run; 0 where caching does not apply (nothing frozen, or dropout in it)."""
        return len(self._layers)

    @property
    def size(self) -> int:
        """Bytes held."""
        return self._store.size

    def __len__(self) -> int:
        """Items held."""
        return len(self._store)

    def summary(self) -> str:
        """What was kept and what it saved, in one line."""
        place = "memory" if self.folder is None else str(self.folder)
        return (
            f"trunk cache: {self.skipped} of {self._all_layers} layers served from {place}; {len(self)} items, "
            f"{self.size / 1e6:.1f} MB, {self.served} of {self.forwards} forwards skipped"
        )

    def rebind(self, model: nn.Module) -> TrunkCache:
        """The same items for another set of adapters above the same layers of the same base model.

        In memory, that the base model is the same is for the caller to know; on disk `trunk_digest` tells.

        Raises:
            ValueError: The trunk of `model` has another length.
        """
        other = TrunkCache(model, self.limit, self.folder)
        if other.skipped != self.skipped:
            raise ValueError(f"the trunk has {other.skipped} layers here and {self.skipped} layers in the cache.")
        if self.folder is None:
            other._store = self._store
        return other

    def items_alone(self) -> TrunkCache:
        """The same items without the model, which can then be freed, for `rebind`."""
        other = copy.copy(self)
        other._model, other._layers = nn.Identity(), [nn.Identity()] * self.skipped
        return other

    @contextmanager
    def serve(self, batch: Any) -> Iterator[None]:
        """Forwards of `batch` inside this context skip the trunk if all items are known, else they are kept."""
        if isinstance(batch, ChoiceBatch):
            # Before the layers are stood in for: the model may have to be tried.
            batch = batch.suited_to(self._model)
        if not self._layers or not isinstance(batch, ChoiceBatch) or "lengths" not in batch:
            yield
            return
        keys: list[str] = []
        hidden: Tensor | None = None

        def run(layer: nn.Module, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            nonlocal keys, hidden
            if layer is self._layers[0]:
                # Not before: accelerate begins autocast, which is part of the key, inside the model's forward.
                keys = _keys(batch)
                hidden = self._assemble(batch, keys)
            if hidden is not None:
                return hidden
            output = own(*args, **kwargs)
            if layer is self._layers[-1]:
                self._keep(batch, keys, output)
            return output

        with forwards_replaced(self._layers, run):
            yield

    def _assemble(self, batch: ChoiceBatch, keys: Sequence[str]) -> Tensor | None:
        """Hidden states [batch, tokens, hidden], zero where there is padding (on the left); None if one is unknown."""
        self.forwards += 1
        rows = self._store.get(keys)
        if rows is None:
            return None
        self.served += 1
        ids = batch["input_ids"]
        hidden = torch.zeros(*ids.shape, rows[0].shape[-1], dtype=rows[0].dtype, device=ids.device)
        for index, row in enumerate(rows):
            hidden[index, -row.shape[0] :] = row.to(ids.device)
        return hidden

    def _keep(self, batch: ChoiceBatch, keys: Sequence[str], output: Any) -> None:
        # A layer that returns more than its hidden states could not be skipped.
        if isinstance(output, Tensor):
            lengths = batch["lengths"].tolist()
            self._store.add({key: output[index, -lengths[index] :] for index, key in enumerate(keys)})


def _keys(batch: ChoiceBatch) -> list[str]:
    """A name for each item: its tokens, their positions, which tell the packed choices apart, and autocast's type."""
    device = batch["input_ids"].device.type
    autocast = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else ""
    rows = zip(batch["input_ids"].cpu(), batch["position_ids"].cpu(), batch["lengths"].tolist(), strict=True)
    return [
        hashlib.sha256(ids[-length:].numpy().tobytes() + positions[-length:].numpy().tobytes()).hexdigest() + autocast
        for ids, positions, length in rows
    ]


# --- which layers, of which model ------------------------------------------------------------------------------------


def frozen_trunk(model: nn.Module) -> list[nn.Module]:
    """The transformer layers below the first that is adapted or trained; empty where caching does not apply."""
    layers = outermost_layers(model)
    count = 0
    while count < len(layers) and not any(_changes(module) for module in layers[count].modules()):
        count += 1
    below = _not_above(model, layers[:count])
    attention_drops = bool(getattr(text_config(model), "attention_dropout", 0))
    varies = attention_drops or any(_changes(module) or _drops(module) for module in below.values())
    return [] if varies else layers[:count]


def trunk_digest(model: nn.Module, trunk: Sequence[nn.Module]) -> str:
    """SHA-256 (hex) of all that the output of `trunk` depends on beside the item.

    These are the base model's name, commit, class and config, the versions of torch and transformers, the attention
    implementation, the type of device, the number of layers, and name, type, shape and bytes of every parameter and
    buffer of the trunk and outside of the layers (embeddings, rotary frequencies; also the final norm, which does no
    harm). It reads all of them.
    """
    base = base_model(model)
    config: Any = getattr(model, "config", None)
    identity = {
        "format": _FORMAT,
        "class": f"{type(base).__module__}.{type(base).__qualname__}",
        "config": config.to_dict() if hasattr(config, "to_dict") else None,
        "name": _name(model),
        "commit": getattr(config, "_commit_hash", None),
        "attention": getattr(config, "_attn_implementation", None),
        "device": next(base.parameters()).device.type,
        "layers": len(trunk),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode())
    for prefix, module in _not_above(model, trunk).items():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            digest.update(f"{prefix}.{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            for part in plain_tensors(tensor):
                digest.update(part.detach().flatten().cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _folder_name(model: nn.Module, trunk: Sequence[nn.Module]) -> str:
    """A name that tells people which model it is, and the digest."""
    title = re.sub(r"[^\w.-]", "_", Path(_name(model)).name) or type(base_model(model)).__name__
    return f"{title}-{len(trunk)}-layers-{trunk_digest(model, trunk)[:32]}"


def _name(model: nn.Module) -> str:
    """Hub id or folder of the base model, empty where it was built in memory."""
    return str(getattr(getattr(model, "config", None), "_name_or_path", None) or "")


def _not_above(model: nn.Module, trunk: Sequence[nn.Module]) -> dict[str, nn.Module]:
    """By name the modules of the base model but for the layers above the trunk and the language-model head."""
    base, below = base_model(model), {id(layer) for layer in trunk}
    above = [layer for layer in outermost_layers(base) if id(layer) not in below]
    getter: Any = getattr(base, "get_output_embeddings", lambda: None)
    if (head := getter()) is not None:
        above.append(head)
    left_out = {id(module) for part in above for module in part.modules()}
    return {name: module for name, module in base.named_modules() if id(module) not in left_out}


def _drops(module: nn.Module) -> bool:
    """Whether `module` is dropout, or calls it as a function with a probability of its own (OPT, XGLM)."""
    if isinstance(module, nn.Dropout):
        return module.p > 0
    rates = (module.__dict__.get(name) for name in ("dropout", "hidden_dropout", "activation_dropout"))
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


def _changes(module: nn.Module) -> bool:
    """Whether `module` itself, its children apart, is adapted or trained, now or before it was loaded."""
    return isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) or any(
        parameter.requires_grad for parameter in module.parameters(recurse=False)
    )


def served(batch: Any, trunk_cache: TrunkCache | None) -> AbstractContextManager[None]:
    """`TrunkCache.serve`, or nothing where there is no cache."""
    return nullcontext() if trunk_cache is None else trunk_cache.serve(batch)

"""The features of items, read off a model once: kept in memory, or in files for later runs and after a kill."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora.models.layers import base_model, outermost_layers
from bayeslora.readouts.blocks import OptionFeatures
from bayeslora.readouts.hidden import POOLINGS, ItemVectors, item_vectors, read_layers, vectors_together
from bayeslora.scoring.base import ChoiceItem
from bayeslora.scoring.cloze import Cloze, ClozeBatch
from bayeslora.scoring.trunk_cache import trunk_digest
from bayeslora.scoring.trunk_store import DiskStore, MemoryStore, Store
from bayeslora.system import console

_LIMIT = 64 * 2**30
_TOGETHER = 64
"""Items of one file of the store."""
_TOKENS = 512
"""Of a forward on a CPU; there the time by token falls no further."""


class FeatureReader:
    """Reads the option vectors of items.

    On a CPU items share a forward as one row behind each other, so that their numbers do not depend on those beside
    them; on a GPU as a padded batch.

    Args:
        model: A causal language model, with or without adapters; it stays as it is.
        scoring: Puts questions and choices into tokens.
        hidden: Whether to give the vectors of the choices; they are read in any case.
        likelihood: Whether to read the likelihood numbers, for which all layers run.
        folder: Keep what is read in files here, in a subfolder for this model and its weights; default: in memory.
        batch_size: Items per forward on a GPU.
    """

    def __init__(
        self,
        model: nn.Module,
        scoring: Cloze,
        *,
        hidden: bool = True,
        likelihood: bool = True,
        folder: str | Path | None = None,
        batch_size: int = 8,
    ):
        self.model, self.scoring, self.hidden, self.likelihood = model, scoring, hidden, likelihood
        self.layers = read_layers(model)
        self.batch_size = batch_size
        self._store: Store = MemoryStore(_LIMIT)
        if folder is not None:
            self._store = DiskStore(Path(folder).expanduser() / self._name(), _LIMIT)

    def __call__(self, items: Sequence[ChoiceItem], *, progress: bool = False) -> OptionFeatures:
        """The features of `items`, in their order.

        Raises:
            ValueError: There are no items.
        """
        if not items:
            raise ValueError("there are no items to read; expected at least one.")
        rows: list[ItemVectors] = []
        with console.progress("features", len(items), "items", show=progress) as line:
            for first in range(0, len(items), _TOGETHER):
                rows += self._part(items[first : first + _TOGETHER])
                line.advance(min(_TOGETHER, len(items) - first))
        features = _joined(rows, self.layers)
        return features if self.hidden else replace(features, hidden={})

    def without_cache(self) -> FeatureReader:
        """One that has read nothing yet, and keeps what it reads in memory."""
        anew = copy.copy(self)
        anew._store = MemoryStore(_LIMIT)
        return anew

    def _part(self, items: Sequence[ChoiceItem]) -> list[ItemVectors]:
        batches = [self.scoring([item]) for item in items]
        keys = [_key(batch) for batch in batches]
        known = [self._kept(key) for key in keys]
        missing = [index for index, row in enumerate(known) if row is None]
        new = dict(zip(missing, self._read([(items[index], batches[index]) for index in missing]), strict=True))
        self._store.add({name: row for index in new for name, row in _named(keys[index], new[index]).items()})
        return [new[index] if row is None else row for index, row in enumerate(known)]

    def _read(self, pairs: Sequence[tuple[ChoiceItem, ClozeBatch]]) -> list[ItemVectors]:
        """What the model holds at items, each of which comes with its own batch."""
        found: list[ItemVectors] = []
        device = next(self.model.parameters()).device
        if device.type == "cpu":
            for joined in _rows([batch for _, batch in pairs]):
                found += self._together(joined)
            return found
        for first in range(0, len(pairs), self.batch_size):
            batch: Any = self.scoring([item for item, _ in pairs[first : first + self.batch_size]])
            found += item_vectors(self.model, batch.to(device), self.layers, likelihood=self.likelihood)
        return found

    def _together(self, batches: Sequence[ClozeBatch]) -> list[ItemVectors]:
        """In one forward, or one by one for a model that would not read them right."""
        if all(batch.suited_to(self.model) is batch for batch in batches):
            return vectors_together(self.model, batches, self.layers, likelihood=self.likelihood)
        each = [item_vectors(self.model, batch, self.layers, likelihood=self.likelihood) for batch in batches]
        return [row for rows in each for row in rows]

    def _kept(self, key: str) -> ItemVectors | None:
        names = [f"{key}.hidden", f"{key}.likelihood"][: 1 + self.likelihood]
        rows = self._store.get(names)
        return None if rows is None else ItemVectors(rows[0], rows[1] if self.likelihood else None)

    def _name(self) -> str:
        """Of the folder of this model: what its weights, with those of adapters, and the layers read come to."""
        layers = outermost_layers(self.model)
        digest = hashlib.sha256(trunk_digest(self.model, layers).encode())
        digest.update(repr(self.layers).encode())
        for name, tensor in self.model.named_parameters():
            if tensor.requires_grad:
                digest.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
        return f"options-{type(base_model(self.model)).__name__}-{digest.hexdigest()[:32]}"


def _rows(batches: Sequence[ClozeBatch]) -> list[list[ClozeBatch]]:
    """Items behind each other that share a forward: as many as have `_TOKENS` tokens, or one."""
    rows: list[list[ClozeBatch]] = []
    left = 0
    for batch in batches:
        tokens = batch["input_ids"].shape[1]
        if not rows or tokens > left:
            rows.append([])
            left = _TOKENS
        rows[-1].append(batch)
        left -= tokens
    return rows


def _key(batch: ClozeBatch) -> str:
    """Of an item alone in its batch: its tokens, and their positions, which tell the packed choices apart."""
    tokens = batch["input_ids"].numpy().tobytes() + batch["position_ids"].numpy().tobytes()
    return hashlib.sha256(tokens).hexdigest()


def _named(key: str, row: ItemVectors) -> dict[str, Tensor]:
    parts = {f"{key}.hidden": row.hidden}
    return parts if row.likelihood is None else parts | {f"{key}.likelihood": row.likelihood}


def _joined(rows: Sequence[ItemVectors], layers: Sequence[int]) -> OptionFeatures:
    """Items of any number of choices as one; zeros behind the mask."""
    width = max(len(row.hidden) for row in rows) - 1
    mask = torch.stack([torch.arange(width) < len(row.hidden) - 1 for row in rows])
    options = torch.stack([_widened(row.hidden[1:], width) for row in rows])
    hidden = {
        f"layer {layer}, {pooling}": options[:, :, place, number]
        for place, layer in enumerate(layers)
        for number, pooling in enumerate(POOLINGS)
    }
    numbers = [_widened(row.likelihood, width) for row in rows if row.likelihood is not None]
    # The question's last token, about two thirds up.
    questions = torch.stack([row.hidden[0, -2 if len(layers) > 1 else -1, -1] for row in rows]).float()
    return OptionFeatures(hidden, mask, questions, {"likelihood": torch.stack(numbers)} if numbers else {})


def read_together(parts: Sequence[OptionFeatures]) -> OptionFeatures:
    """The features of all parts' items, one part behind the other, whatever their numbers of choices."""
    width = max(part.mask.shape[1] for part in parts)

    def joined(blocks: Sequence[Tensor]) -> Tensor:
        return torch.cat([nn.functional.pad(block, (0, 0, 0, width - block.shape[1])) for block in blocks])

    hidden, numbers = (
        {name: joined([getattr(part, kind)[name] for part in parts]) for name in getattr(parts[0], kind)}
        for kind in ("hidden", "numbers")
    )
    mask = joined([part.mask.unsqueeze(-1) for part in parts])[..., 0]
    return OptionFeatures(hidden, mask, torch.cat([part.questions for part in parts]), numbers)


def _widened(rows: Tensor, width: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(width - len(rows), *rows.shape[1:])])

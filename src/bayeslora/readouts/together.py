"""Several items in one row of a forward, in which each has the numbers that it has alone.

Linear layers see the tokens of all items behind each other, without padding, and treat each token by itself. The mask
keeps items apart in the attention; where that is PyTorch's own, it also runs item by item, so that its sums have the
same order in any company.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bayeslora.scoring.cloze import ClozeBatch


class JoinedBatch(ClozeBatch):
    """One row [question | choice 1 | ... | question | choice 1 | ...]; its choices are those of all items."""

    @classmethod
    def of(cls, items: Sequence[ClozeBatch]) -> JoinedBatch:
        """The row of `items`, each of them a batch of one."""
        starts = _before([len(item["input_ids"][0]) for item in items])
        reads = _before([len(item["read"][0]) for item in items])
        choices = _before([len(item["choice_mask"][0]) for item in items])
        columns = {
            "read": [_places(item) + start for item, start in zip(items, starts, strict=True)],
            "source": [item["source"] + before for item, before in zip(items, reads, strict=True)],
            "choice": [item["choice"] + before for item, before in zip(items, choices, strict=True)],
            **{name: [item[name] for item in items] for name in ("input_ids", "position_ids", "target", "choice_mask")},
        }
        mask = torch.block_diag(*(item["attention_mask"][0, 0] for item in items)).bool()
        tensors = {name: torch.cat(parts, 1) for name, parts in columns.items()}
        return cls(**tensors, attention_mask=mask[None, None], lengths=sum(item["lengths"] for item in items))

    @property
    def kept(self) -> int:
        """Every position: items end anywhere in the row."""
        return int(self["input_ids"].shape[1])


class attending_by_part(TorchFunctionMode):
    """Inside this context PyTorch's attention over a row runs once for each part of the row, over what that part sees.

    Args:
        parts: For each part the slices of the row that it sees, in their order; the last of them is the part itself.
    """

    def __init__(self, parts: Sequence[Sequence[slice]]):
        super().__init__()
        self.parts, self.total = parts, parts[-1][-1].stop

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """`func` itself, but for attention."""
        if func is nn.functional.scaled_dot_product_attention and len(self.parts) > 1:
            return self._attention(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attention(
        self,
        func: Callable[..., Tensor],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        if attn_mask is None or attn_mask.shape[-2:] != (self.total, self.total):
            return func(query, key, value, attn_mask, *args, **kwargs)
        found = []
        for part in self.parts:
            keys, values = (_joined([whole[..., seen, :] for seen in part], -2) for whole in (key, value))
            mask = _joined([attn_mask[..., part[-1], seen] for seen in part], -1)
            found.append(func(query[..., part[-1], :], keys, values, mask, *args, **kwargs))
        return torch.cat(found, -2)


def _places(item: ClozeBatch) -> Tensor:
    """What the head reads, as positions in the item's row."""
    place: Tensor = item["read"] + item["input_ids"].shape[1] - item.kept
    return place


def _joined(pieces: Sequence[Tensor], dim: int) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces), dim)


def _before(counts: Sequence[int]) -> list[int]:
    """The sum of the counts before each."""
    return [sum(counts[:place]) for place in range(len(counts))]

"""The heads of a decision model as tensors and plain fields, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from bayeslora.readouts.novelty import Novelty
from bayeslora.readouts.questions.files import head_tensors, restored_head
from bayeslora.runs.decisions.heads import Heads
from bayeslora.tasks.decisions.questions import signature


def heads_tensors(heads: Heads) -> dict[str, Tensor]:
    """The tensors of all heads by name."""
    tensors: dict[str, Tensor] = {}
    for index, head in enumerate(heads.by_signature.values()):
        tensors |= {f"heads.{index}.{name}": tensor for name, tensor in head_tensors(head).items()}
    if heads.novelty is not None:
        tensors |= heads.novelty.tensors()
    return tensors


def restored_heads(fields: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> Heads:
    """Heads from their fields and tensors; errors as of `restored_head`."""
    heads = [restored_head(f"heads.{index}", one, tensors) for index, one in enumerate(fields)]
    return Heads({signature(head.question): head for head in heads}, Novelty.restored(tensors))

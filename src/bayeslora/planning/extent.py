"""The longest item of a task: measured where items and tokenizer are at hand, else what the config allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from bayeslora.models import load_tokenizer, locate
from bayeslora.planning.shape import Shape
from bayeslora.runs.config import ModelConfig, TaskConfig
from bayeslora.runs.items import with_classes
from bayeslora.runs.loading import scoring_of, with_prompt
from bayeslora.tasks import Item


@dataclass(frozen=True)
class Extent:
    """A shape, and where it is known from.

    Args:
        shape: Of the longest item.
        source: "measured", "max_length", "given", or several of them.
    """

    shape: Shape
    source: str

    @staticmethod
    def union(extents: Sequence[Extent]) -> Extent:
        """The largest; all of one scoring."""
        sources = dict.fromkeys(extent.source for extent in extents)
        return Extent(Shape.union([extent.shape for extent in extents]), ", ".join(sources))


def extent_of(
    task: TaskConfig,
    items: dict[str, list[Item]] | None,
    model: ModelConfig,
    tokens: int | None = None,
    answer_tokens: int | None = None,
) -> Extent:
    """The longest item of `task`; without items or tokenizer `max_length`, which no batch exceeds.

    Args:
        task: The task.
        items: By split, where they could be read.
        model: Whose tokenizer it is.
        tokens: Overrides the length.
        answer_tokens: Overrides the length of the choices (cloze).
    """
    every = [item for part in (items or {}).values() for item in part]
    tokenizer = _tokenizer(model.name) if every and tokens is None else None
    if tokenizer is not None:
        # As a training writes it down, so that what heads announce counts.
        settled = with_prompt(with_classes(task, every), model, (items or {}).get("train", every))
        shape = Shape.measured(scoring_of(settled, tokenizer, task.max_length), every)
        return Extent(shape, "measured")
    choices = max((len(item.choices) for item in every), default=5)
    length = tokens or task.max_length
    return Extent(
        Shape(task.scoring, length, answer_tokens or length - 1, choices), "max_length" if tokens is None else "given"
    )


@lru_cache(maxsize=4)
def _tokenizer(name: str) -> Any:
    """The tokenizer, if it lies on this machine; None where it would have to be fetched."""
    if not Path(locate(name)).is_dir():
        return None
    tokenizer: Any = load_tokenizer(name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer

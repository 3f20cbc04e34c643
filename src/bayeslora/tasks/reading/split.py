"""Splits decided by each item's group or own id, so they never move when data are reordered or added."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from bayeslora.tasks.reading.item import Item, TaskError


class Identified(Protocol):
    """Anything with an id."""

    @property
    def id(self) -> str:
        """Name of the item."""


AnyItem = TypeVar("AnyItem", bound=Identified)


@dataclass(frozen=True)
class Splits:
    """The items to fit on (train), to choose settings on (dev) and to report on (test).

    Args:
        train: To fit on.
        dev: To choose settings on.
        test: To report on.
        origin: Where they come from, in words.
        available: How many items each split had before a part was drawn; empty where all are here.
    """

    train: list[Item]
    dev: list[Item]
    test: list[Item]
    origin: str = field(default="", compare=False)
    available: dict[str, int] = field(default_factory=dict, compare=False)

    @property
    def items(self) -> list[Item]:
        """All of them."""
        return self.train + self.dev + self.test


def stable_fraction(text: str) -> float:
    """Map a text to a number in [0, 1) that is the same on every machine and in every run."""
    # 53 bits fit a float exactly, so the result can never round up to 1.
    return (int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 11) / 2**53


def check_fraction(fraction: float) -> None:
    """Raise TaskError unless the fraction is at least 0 and below 1."""
    if not 0 <= fraction < 1:
        raise TaskError(f"a split fraction should be at least 0 and below 1, but is {fraction!r}; try 0.2.")


def hashed_split(
    items: Sequence[AnyItem], fraction: float = 0.2, salt: str = "dev"
) -> tuple[list[AnyItem], list[AnyItem]]:
    """Split items into (rest, held out) by the sha256 of salt and group, or id; both keep the given order.

    Each item's side depends on nothing but the salt and its group or, where it has none, its id. The
    held-out share is about, not exactly, the fraction.

    >>> items = [Item(str(n), f"Question {n}?", ("yes", "no"), None) for n in range(100)]
    >>> rest, held_out = hashed_split(items, fraction=0.2)
    >>> len(rest), len(held_out), [item.id for item in held_out[:3]]
    (79, 21, ['19', '23', '31'])

    Raises:
        TaskError: the fraction is not in [0, 1).
    """
    check_fraction(fraction)
    rest: list[AnyItem] = []
    held_out: list[AnyItem] = []
    for item in items:
        key = getattr(item, "group", None) or item.id
        side = held_out if stable_fraction(f"{salt}:{key}") < fraction else rest
        side.append(item)
    return rest, held_out

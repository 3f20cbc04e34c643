"""Finds items of one split that another one has too."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

from bayeslora.tasks.reading.item import Item
from bayeslora.tasks.reading.split import Splits


def repeated(items: Iterable[Item], earlier: Iterable[Item]) -> list[bool]:
    """Return for each item whether an earlier one has its question and its choices, in any order."""
    known = {_content(item) for item in earlier}
    return [_content(item) in known for item in items]


def groups_of(items: Iterable[Item]) -> set[str]:
    """Return the groups that the items belong to."""
    return {item.group for item in items if item.group is not None}


def warn_repeats(name: str, splits: Splits, remedy: str, *, group: str, stacklevel: int = 3) -> None:
    """Warn of dev items that repeat train items, and of test items that repeat either.

    Args:
        name: of the task.
        splits: its items.
        remedy: what can be done about it.
        group: what the items of a group share, in a word.
        stacklevel: as of `warnings.warn`, from where this is called.
    """
    for part, items, before, earlier in (
        ("dev", splits.dev, "train", splits.train),
        ("test", splits.test, "train or dev", splits.train + splits.dev),
    ):
        if found := _described(items, earlier, f"a {before} item", group):
            warnings.warn(
                f"{name}: of {len(items)} {part} items {found}, so results can look better than they are; {remedy}.",
                stacklevel=stacklevel,
            )


def _described(items: Sequence[Item], earlier: Sequence[Item], other: str, group: str) -> str:
    same = repeated(items, earlier)
    groups = groups_of(earlier)
    near = sum(item.group in groups and not known for item, known in zip(items, same, strict=True))
    words = [f"{sum(same)} have the same question and choices as {other}"] if any(same) else []
    words += [f"{near} share their {group} with {other}"] if near else []
    return " and ".join(words)


def _content(item: Item) -> tuple[str, frozenset[str]]:
    return item.question.strip(), frozenset(choice.strip() for choice in item.choices)

"""The classes of a classification task: texts, whatever their order among an item's choices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from bayeslora.tasks.reading.item import Item, TaskError


def class_texts(items: Iterable[Item], declared: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the classes that are the choices of all items.

    Args:
        items: Of all splits.
        declared: The classes in their order, of which each item has some or all; None: those of the first item, which
            all others have too.

    Raises:
        TaskError: the choices of an item are not these classes, or a class is declared twice.
    """
    classes, first = None if declared is None else _stripped(declared), ""
    for item in items:
        choices = _stripped(item.choices)
        if classes is None:
            classes, first = choices, item.id
        elif not set(choices) <= set(classes) or (declared is None and len(choices) < len(classes)):
            expected = f"{list(classes)}" if declared is not None else f"{list(classes)}, as item {first!r} has them,"
            raise TaskError(
                f"item {item.id!r}: with scoring classification the choices are the classes of the head, so expected "
                f"{expected} in any order, but they are {list(choices)}; name all classes by the option classes "
                "(bayeslora train: --task.classes '[a, b]'), or use scoring cloze or letter for items with choices of "
                "their own."
            )
    if classes is None or len(set(classes)) < len(classes):
        raise TaskError(f"expected classes that all differ, and items that have them, but the classes are {classes}.")
    return classes


def renamed(items: Iterable[Item], classes: Sequence[str]) -> list[Item]:
    """Return items of another task as a head with these classes sees them: their choice k is called like class k.

    Items whose choices are the classes, in any order, stay what they are.

    Raises:
        TaskError: an item has more choices than there are classes.
    """
    return [
        item if set(_stripped(item.choices)) == set(_stripped(classes)) else _renamed(item, classes) for item in items
    ]


def _renamed(item: Item, classes: Sequence[str]) -> Item:
    if len(item.choices) > len(classes):
        raise TaskError(
            f"item {item.id!r} has {len(item.choices)} choices, but the head has {len(classes)} classes; drop its task."
        )
    return replace(item, choices=tuple(classes[: len(item.choices)]))


def _stripped(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(text.strip() for text in texts)

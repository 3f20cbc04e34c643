"""The items of a run's task."""

from __future__ import annotations

import random
from typing import TypeVar

from bayeslora.config import TaskConfig
from bayeslora.tasks import LocalFile, Splits, Task, get_task

__all__ = ["class_names", "subset", "task_items"]

AnyItem = TypeVar("AnyItem")


def build_task(config: TaskConfig) -> Task:
    """The task of a config: built in, or a local file with its column names.

    Raises:
        TaskError: The task, the file or a column does not exist; the message has the nearest right one.
    """
    task = get_task(config.name)
    if isinstance(task, LocalFile):
        task = LocalFile(
            task.train,
            dev=task.dev,
            test=task.test,
            name=task.name,
            question_column=config.question_column,
            choices_column=config.choices_column,
            label_column=config.label_column,
            id_column=config.id_column,
            choices=config.choices,
        )
    return task


def task_items(config: TaskConfig) -> Splits:
    """The splits of a config's task, cut to the numbers of examples it asks for."""
    splits = build_task(config).splits(source=config.source)
    parts = {
        name: subset(getattr(splits, name), getattr(config, f"{name}_examples"), config.subset_seed)
        for name in ("train", "dev", "test")
    }
    return Splits(**parts)


def class_names(splits: Splits) -> list[str] | None:
    """The choices that all items share, in their order; None where they differ."""
    choices = {item.choices for part in (splits.train, splits.dev, splits.test) for item in part}
    return list(choices.pop()) if len(choices) == 1 else None


def subset(items: list[AnyItem], count: int | None, seed: int) -> list[AnyItem]:
    """`count` of the items, drawn with `seed`; all where there are no more, or `count` is None."""
    if count is not None and count < 1:
        raise ValueError(f"the number of examples must be at least 1, got {count}.")
    if count is None or count >= len(items):
        return items
    return random.Random(seed).sample(items, count)

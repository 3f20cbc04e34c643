"""The items of a comparison: those of its tasks, and those that every adapter predicts beside its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bayeslora.experiments.comparison.config import CompareConfig
from bayeslora.experiments.comparison.records import Items, Stage
from bayeslora.runs import task_items
from bayeslora.runs.items import with_classes
from bayeslora.tasks import Item, Splits
from bayeslora.tasks.classes import renamed


class ComparedItems:
    """Everything that a comparison trains on and predicts.

    Args:
        config: The comparison.
        stages: What is to be computed; selection alone needs no test items.

    Attributes:
        splits: By title of a task, its train, dev and test items.

    Raises:
        ValueError: A task lacks items of a split that is needed, or an out-of-distribution task has no test items.
    """

    def __init__(self, config: CompareConfig, stages: Sequence[Stage] = ("selection", "final")):
        self.splits = {title: task_items(task) for title, task in config.tasks.items()}
        self._outside = {title: task_items(task).test for title, task in config.out_of_distribution.items()}
        self._config = config
        needed = ("train", "dev", "test") if "final" in stages else ("train", "dev")
        for title, splits in self.splits.items():
            _check_splits(title, splits, needed)
        for title, items in self._outside.items():
            if not items:
                raise ValueError(f"out_of_distribution task {title!r} has no test items.")

    def outside(self, task: str) -> list[tuple[str, list[Item]]]:
        """Titles and test items of the out-of-distribution tasks that an adapter trained on `task` predicts.

        A classification head sees the items of a task with other classes as if these had its own classes' names.
        """
        classes = self._classes(task)
        return [
            (title, self._outside[title] if classes is None else renamed(self._outside[title], classes))
            for title in self._config.outside(task)
        ]

    def records(self, task: str) -> Iterator[Items]:
        """What the results file says about the items that go with a task."""
        splits = self.splits[task]
        for name, items in (("dev", splits.dev), ("test", splits.test)):
            if items:
                yield items_record(task, name, items, labelled=True)
        classes = self._classes(task)
        for name, items in self.outside(task):
            same = classes is None or set(self._outside[name][0].choices) == set(classes)
            yield items_record(task, f"ood:{name}", items, labelled=same)

    def _classes(self, task: str) -> list[str] | None:
        """Of the head that is trained on a task; None where there is none."""
        return with_classes(self._config.tasks[task], self.splits[task].items).classes


def _check_splits(task: str, splits: Splits, needed: Sequence[str]) -> None:
    for name in needed:
        if not getattr(splits, name):
            raise ValueError(f"task {task!r} has no {name} items; needed are {', '.join(needed)}.")


def items_record(task: str, split: str, items: Sequence[Item], *, labelled: bool) -> Items:
    """What the results file keeps of a split; no labels where they mean something else than those trained on."""
    labels = [item.label for item in items]
    known = labelled and all(label is not None for label in labels)
    return Items(
        task=task,
        split=split,
        ids=[item.id for item in items],
        labels=[int(label) for label in labels if label is not None] if known else None,
        choices=[len(item.choices) for item in items],
    )

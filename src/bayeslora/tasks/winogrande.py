"""WinoGrande: fill the gap with one of two names or things (arXiv 1907.10641)."""

from __future__ import annotations

from typing import ClassVar

from bayeslora.tasks.base import Item, Row, Task


class Winogrande(Task):
    """The question is the sentence with its gap written as an underscore.

    Most sentences have a twin that differs in a word and has the other answer. Items with the same two options are a
    group, so that twins stay together.
    """

    name = "winogrande"
    hub_id = "allenai/winogrande"
    group_means = "two options"
    hub_config = "winogrande_xl"
    offline_folder: ClassVar[str | None] = "winogrande/winogrande_xl/validation"

    def parse(self, row: Row, index: int) -> Item:
        """Read a row; its answer is "1", "2" or, in the public test split, empty."""
        label = int(row["answer"]) - 1 if row["answer"] else None
        options = (row["option1"], row["option2"])
        group = " or ".join(sorted(option.strip().lower() for option in options))
        return Item(f"{self.name}-{index}", row["sentence"], options, label, group)


class _Subset(Winogrande):
    # The data package carries the validation split alone, which is the same for all sizes.
    offline_folder = None


class WinograndeS(_Subset):
    """The training subset S (640 items)."""

    name = "winogrande_s"
    hub_config = "winogrande_s"


class WinograndeM(_Subset):
    """The training subset M (2558 items)."""

    name = "winogrande_m"
    hub_config = "winogrande_m"

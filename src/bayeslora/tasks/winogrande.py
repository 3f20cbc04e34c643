"""WinoGrande: fill the gap with one of two names or things (arXiv 1907.10641)."""

from __future__ import annotations

from .base import Item, Row, Task


class Winogrande(Task):
    """The question is the sentence with its gap written as an underscore."""

    name = "winogrande"
    hub_id = "allenai/winogrande"
    hub_config = "winogrande_xl"
    offline_folder = "winogrande/winogrande_xl/validation"

    def parse(self, row: Row, index: int) -> Item:
        """Read a row; its answer is "1", "2" or, in the public test split, empty."""
        label = int(row["answer"]) - 1 if row["answer"] else None
        return Item(f"{self.name}-{index}", row["sentence"], (row["option1"], row["option2"]), label)

"""BoolQ: yes/no questions that people typed into a search engine, with a passage (arXiv 1905.10044)."""

from __future__ import annotations

from .base import Item, Row, Task


class BoolQ(Task):
    """The passage is part of the question text; the choices are no and yes."""

    name = "boolq"
    hub_id = "google/boolq"
    offline_folder = "boolq/none/validation"

    def parse(self, row: Row, index: int) -> Item:
        """Read a row; its answer is a truth value."""
        question = f"{row['passage']}\n{row['question']}?"
        return Item(f"{self.name}-{index}", question, ("no", "yes"), int(row["answer"]))

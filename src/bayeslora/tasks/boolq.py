"""BoolQ: yes/no questions that people typed into a search engine, with a passage (arXiv 1905.10044)."""

from __future__ import annotations

import re

from bayeslora.tasks.base import Item, Row, Task

LETTERS = 80
"""Letters of a passage's beginning that tell it from others."""


class BoolQ(Task):
    """The passage is part of the question text; the choices are no and yes. Items on the same passage are a group.

    Wikipedia's passages were taken at different times, so that some differ in a word or at the end: a passage goes by
    its beginning.
    """

    name = "boolq"
    hub_id = "google/boolq"
    group_means = "passage"
    offline_folder = "boolq/none/validation"

    def parse(self, row: Row, index: int) -> Item:
        """Read a row; its answer is a truth value."""
        question = f"{row['passage']}\n{row['question']}?"
        beginning = re.sub(r"\W+", " ", row["passage"].lower())[:LETTERS]
        return Item(f"{self.name}-{index}", question, ("no", "yes"), int(row["answer"]), beginning)

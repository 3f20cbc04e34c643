"""PIQA: which of two ways reaches a physical goal (arXiv 1911.11641)."""

from __future__ import annotations

from bayeslora.tasks.base import Item, Row, Task


class PIQA(Task):
    """The question is the goal; the choices are two solutions. Items with the same goal are a group."""

    name = "piqa"
    # The authors' own repository is a loading script, which datasets 4 and later no longer runs.
    hub_id = "baber/piqa"
    group_means = "goal"
    offline_folder = "piqa/plain_text/validation"

    def parse(self, row: Row, index: int) -> Item:
        """Read a row; its label is 0, 1 or, in the public test split, -1."""
        label = row["label"] if row["label"] >= 0 else None
        return Item(f"{self.name}-{index}", row["goal"], (row["sol1"], row["sol2"]), label, row["goal"].strip().lower())

"""CommonsenseQA: everyday questions written around ConceptNet relations (arXiv 1811.00937)."""

from __future__ import annotations

from bayeslora.tasks.base import Item, Row, Task
from bayeslora.tasks.reading.parse_rows import marked_item


class CommonsenseQA(Task):
    """Five choices; the labels of the public test split are private."""

    name = "commonsenseqa"
    hub_id = "tau/commonsense_qa"
    offline_folder = "tau/commonsense_qa/none/validation"

    def parse(self, row: Row, index: int) -> Item:
        """Read a row."""
        return marked_item(row, row["question"])

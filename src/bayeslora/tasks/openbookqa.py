"""OpenBookQA: elementary science facts applied to new situations (arXiv 1809.02789)."""

from __future__ import annotations

from bayeslora.tasks.base import Item, Row, Task
from bayeslora.tasks.reading.parse_rows import marked_item


class OpenBookQA(Task):
    """The closed-book form: the question alone, without the fact it rests on."""

    name = "openbookqa"
    hub_id = "allenai/openbookqa"
    hub_config = "main"
    offline_folder = "openbookqa/main/validation"
    offline_test = "openbookqa/test_rc_5shot"

    def parse(self, row: Row, index: int) -> Item:
        """Read a row, whose question is a stem that the choices may complete."""
        return marked_item(row, row["question_stem"])

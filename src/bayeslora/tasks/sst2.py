"""SST-2 of GLUE: whether a sentence of a film review is negative or positive (arXiv 1804.07461)."""

from __future__ import annotations

from bayeslora.tasks.base import Item, Row, Task


class SST2(Task):
    """The question is the sentence; the choices are the classes negative and positive.

    GLUE keeps the test labels private, so from the Hub its validation split is the test split. The Hub's training
    split holds phrases of sentences too: a dev item may be part of a training item.
    """

    name = "sst2"
    hub_id = "nyu-mll/glue"
    hub_config = "sst2"
    offline_folder = "glue/sst2/validation"

    def parse(self, row: Row, index: int) -> Item:
        """Read a row; its label is 0, 1 or, in the public test split, -1."""
        label = row["label"] if row["label"] >= 0 else None
        return Item(f"{self.name}-{index}", row["sentence"].strip(), ("negative", "positive"), label)

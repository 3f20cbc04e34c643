"""MRPC of GLUE: whether two sentences from the news mean the same (arXiv 1804.07461)."""

from __future__ import annotations

from bayeslora.tasks.base import Item, Row, Task


class MRPC(Task):
    """The question is both sentences, each with its name in front, as one text; about two thirds are equivalent.

    Of the GLUE tasks this one alone has public test labels on the Hub, so that its test split is used there.
    """

    name = "mrpc"
    hub_id = "nyu-mll/glue"
    hub_config = "mrpc"
    offline_folder = "glue/mrpc/validation"

    def parse(self, row: Row, index: int) -> Item:
        """Read a row; its label is 0 or 1."""
        # Without the names, a tokenizer that drops line breaks would leave no mark between the sentences.
        question = f"Sentence 1: {row['sentence1']}\nSentence 2: {row['sentence2']}"
        return Item(f"{self.name}-{index}", question, ("not equivalent", "equivalent"), row["label"])

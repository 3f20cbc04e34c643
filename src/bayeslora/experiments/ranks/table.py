"""A rank study as a Markdown table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bayeslora.report.text import markdown_table, plus_minus

_SCORES = {"accuracy": "accuracy", "nll": "NLL (nats)", "ece": "ECE"}
_OVERLAPS = {"chrf": "chrF", "bleu": "BLEU", "rouge_l": "ROUGE-L"}


def rank_study_table(record: Mapping[str, Any]) -> str:
    """One row for each rank and for full fine-tuning, with what was held equal above it."""
    heads = ["row", "learning rate", *_SCORES.values(), *(_OVERLAPS.values() if record["texts"] else ())]
    heads += ["trainable", "share", "adapter (MB)", "training time"]
    seeds = len(record["seeds"])
    above = (
        f"{record['method']} on {record['task']} with {record['model']}: {record['train_items']} training and "
        f"{record['test_items']} test items, {seeds} seed{'s' if seeds > 1 else ''}"
    )
    table = markdown_table(heads, [list(_entries(row, bool(record["texts"]))) for row in record["rows"]])
    below = f"Training time is relative to the first row; share is of the base model's {record['base_parameters']:,}."
    if record["texts"]:
        below += f" Text overlap (0 to 100) is of {record['texts']} texts with their references."
    return "\n\n".join([above, table, below])


def _entries(row: Mapping[str, Any], texts: bool) -> Iterator[str]:
    yield row["row"]
    yield f"{row['learning_rate']:g}"
    for name in _SCORES:
        yield plus_minus(**row[name])
    for name in _OVERLAPS if texts else ():
        yield plus_minus(**row["text_overlap"][name], digits=1)
    yield f"{row['trainable_parameters']:,}"
    yield f"{row['trainable_share']:.2%}"
    yield f"{row['adapter_bytes'] / 1e6:.2f}"
    yield f"{row['relative_train_time']:.2f}"

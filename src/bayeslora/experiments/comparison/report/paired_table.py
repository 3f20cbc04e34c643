"""Rows against one reference, item by item, as a table and in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bayeslora.experiments.comparison.records import TEMPERED
from bayeslora.experiments.comparison.report.paired import Difference, difference, hits, losses
from bayeslora.experiments.comparison.report.rows import TaskRows
from bayeslora.report.colours import OUR_METHOD
from bayeslora.report.table import Entry, Table
from bayeslora.report.text import MISSING


def paired_table(tasks: Sequence[TaskRows], other: str) -> Table:
    """Every row against the row `other`, on the items of all tasks together."""
    titles = [title for title in dict.fromkeys(row.title for task in tasks for row in task.rows) if title != other]
    rows = {}
    for title in titles:
        nats, right = (difference(tasks, title, other, per_item) for per_item in (losses, hits))
        if nats.items:
            texts = (_signed(nats, 1, 3), _z(nats), _signed(right, 100, 1), _z(right), nats.extent)
            rows[title] = [Entry(text) for text in texts]
    return Table(
        title=f"Against {other}, item by item",
        heads=["method", "NLL (nats)", "z of the NLL", "accuracy (points)", "z of the accuracy", "extent"],
        rows=rows,
        notes=[
            f"Row minus {other} ± standard error, and their ratio z, on {', '.join(task.task for task in tasks)}. A "
            "negative NLL is better. Seeds predict the same items and are not independent: each item's difference is "
            "averaged over seeds first. The error is that of new items under these trained adapters; among many rows "
            "some z lies beyond 2 by chance."
        ],
    )


def paired_sentences(tasks: Sequence[TaskRows], other: str) -> list[str]:
    """The rows of our method against `other`, such as "bayesian_lora against lora: NLL -0.012 ± 0.003 over ..."."""
    titles = dict.fromkeys(row.title for task in tasks for row in task.rows)
    sentences = []
    for title in (f"{OUR_METHOD}{TEMPERED}", f"{OUR_METHOD}, one pass{TEMPERED}"):
        found = difference(tasks, title, other, losses) if title in titles and title != other else None
        if found is not None and found.items:
            sentences.append(
                f"{title} against {other}: NLL {_signed(found, 1, 3)} over {found.extent} (z {_z(found)})."
            )
    return sentences


def _signed(found: Difference, scale: float, digits: int) -> str:
    return f"{scale * found.mean:+.{digits}f} ± {scale * found.error:.{digits}f}"


def _z(found: Difference) -> str:
    return MISSING if math.isnan(found.z) else f"{found.z:+.1f}"

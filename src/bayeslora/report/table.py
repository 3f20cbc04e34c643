"""Tables as text in rows and columns; templates and terminals give them their form."""

from __future__ import annotations

from dataclasses import dataclass, field

from bayeslora.report.statistics import Mark


@dataclass(frozen=True)
class Entry:
    """Text of a table's cell, whether it is the best of its column or tied with it, and a remark below it."""

    text: str
    mark: Mark = ""
    remark: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: Line above it.
        heads: Heads of the columns; the first is that of the rows' names.
        rows: Name of each row and its entries.
        notes: Sentences below it.
        numeric: Whether entries are numbers, to be aligned on the right.
    """

    kind = "table"
    title: str
    heads: list[str]
    rows: dict[str, list[Entry]]
    notes: list[str] = field(default_factory=list)
    numeric: bool = True

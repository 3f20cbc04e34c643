"""Splits of records in which a state, its near copies and its family stand on one side."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from bayeslora.tasks.decisions.questions import text_of
from bayeslora.tasks.decisions.records import Record
from bayeslora.tasks.reading.split import hashed_split

NEAR = 0.8
"""Share of common word triples (Jaccard) from which on two states are near copies."""

_COMMON = 50
"""A triple that more states have tells nothing of copies: it is of a template, and looking its pairs up is slow."""


def split_records(
    records: Sequence[Record], fraction: float = 0.2, salt: str = "test"
) -> tuple[list[Record], list[Record]]:
    """Split records into (rest, held out); the side hangs on the salt and on the first state of a group alone.

    Raises:
        TaskError: The fraction is not in [0, 1).
    """
    groups = groups_of_states(records)
    marked = [_Grouped(group, index) for index, group in enumerate(groups)]
    rest, held_out = hashed_split(marked, fraction, salt)
    return [records[one.index] for one in rest], [records[one.index] for one in held_out]


class _Grouped:
    def __init__(self, group: str, index: int):
        self.id = self.group = group
        self.index = index


def groups_of_states(records: Sequence[Record]) -> list[str]:
    """A name for each record that equal states, near copies (`NEAR`) and records of one family share."""
    parents = list(range(len(records)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    for one, other in _near_pairs(records):
        low, high = sorted((root(one), root(other)))
        parents[high] = low
    return [records[root(index)].state_key for index in range(len(records))]


def _near_pairs(records: Sequence[Record]) -> Iterable[tuple[int, int]]:
    first: dict[str, int] = {}
    distinct: list[tuple[int, frozenset[str]]] = []
    for index, record in enumerate(records):
        for key in (record.state_key, f"family {record.family}" if record.family else None):
            if key is not None and first.setdefault(key, index) != index:
                yield first[key], index
        if first[record.state_key] == index:
            distinct.append((index, _triples(text_of(record.state))))
    yield from _similar(distinct)


def _similar(states: Sequence[tuple[int, frozenset[str]]]) -> Iterable[tuple[int, int]]:
    holders: dict[str, list[int]] = defaultdict(list)
    for number, (_, triples) in enumerate(states):
        for triple in triples:
            holders[triple].append(number)
    shared: dict[tuple[int, int], int] = defaultdict(int)
    for having in holders.values():
        if len(having) <= _COMMON:
            for place, one in enumerate(having):
                for other in having[place + 1 :]:
                    shared[one, other] += 1
    for one, other in shared:
        (index, triples), (beside, others) = states[one], states[other]
        if len(triples & others) >= NEAR * len(triples | others):
            yield index, beside


def _triples(text: str) -> frozenset[str]:
    """Runs of three words, numbers taken for one and the same; of a short text the whole."""
    words = re.sub(r"\d+", "0", text.lower())
    found = re.findall(r"\w+", words)
    return frozenset(" ".join(found[place : place + 3]) for place in range(max(1, len(found) - 2)))

"""JSON in which no object names a field twice: Python would keep the last one and say nothing."""

from __future__ import annotations

import json
from typing import Any

from bayeslora.tasks.reading.item import TaskError


def read_json_text(text: str | bytes) -> Any:
    """What a JSON text says.

    >>> read_json_text('{"a": 1, "a": 2}')
    Traceback (most recent call last):
        ...
    bayeslora.tasks.reading.item.TaskError: 'a' is there twice in one JSON object; rename or remove one of them.

    Raises:
        json.JSONDecodeError: It is not JSON.
        UnicodeDecodeError: It is not UTF-8.
        TaskError: A field of an object is there twice.
    """
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        repeated = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise TaskError(f"{repeated!r} is there twice in one JSON object; rename or remove one of them.")
    return values

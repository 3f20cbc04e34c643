"""How the config of a results file may grow: by rows, tasks, seeds and controls, and by options newer than the file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bayeslora.runs.differences import completed, differences, same_meaning

_STORAGE = ("cache_trunk_folder", "cache_trunk_limit")


def without_storage(described: Mapping[str, Any]) -> dict[str, Any]:
    """Where the trunk cache lies and how large it may grow define nothing, and may differ when a comparison goes on."""
    if not isinstance(train := described.get("train"), dict):
        return dict(described)
    return {**described, "train": {name: value for name, value in train.items() if name not in _STORAGE}}


def grown(
    present: Mapping[str, Any], wanted: Mapping[str, Any], defaults: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    """The config of a file with what is new of rows, tasks, seeds, and controls and temperatures of rows; nothing else
    may differ.

    None of it depends on another, so the cells that are there stay what they are.

    Raises:
        ValueError: Something else differs; the message names it.
    """
    new = json.loads(json.dumps(wanted))
    old = completed(dict(present), new, json.loads(json.dumps(defaults)))
    if found := differences(same_meaning(_fixed_part(old, new)), same_meaning(_fixed_part(_ungrown(new, old), old))):
        raise ValueError(
            f"{path} was made under another config: {'; '.join(found)}. Rows, tasks and seeds can be added, "
            "and controls and temperatures of rows; for another change choose another output folder, or go back to the "
            "config of the file."
        )
    added = {name: old[name] | new[name] for name in ("rows", "tasks") if isinstance(old.get(name), dict)}
    if "seeds" in old:
        added["seeds"] = list(dict.fromkeys([*old["seeds"], *new["seeds"]]))
    return new | added


def _ungrown(new: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """`new` without the controls and temperatures that its rows have beyond those of `old`."""
    if not (isinstance(new.get("rows"), dict) and isinstance(old.get("rows"), dict)):
        return new
    rows = dict(new["rows"])
    for title in rows.keys() & old["rows"].keys():
        row, before = rows[title], old["rows"][title]
        if "controls" in before and set(before["controls"]) <= set(row.get("controls", ())):
            row = row | {"controls": before["controls"]}
        if before.get("temperature") is False:
            row = row | {"temperature": False}
        rows[title] = row
    return new | {"rows": rows}


def _fixed_part(config: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What must not change: the rows and tasks that `other` has too, and the first seed, which selects."""
    common = {
        name: {title: value for title, value in config[name].items() if title in other.get(name, {})}
        for name in ("rows", "tasks")
        if isinstance(config.get(name), dict)
    }
    return config | common | ({"seeds": config["seeds"][:1]} if "seeds" in config else {})

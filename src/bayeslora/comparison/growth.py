"""How the config of a results file may grow: by rows, tasks and seeds, and by options that are newer than the file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from bayeslora.config import describe
from bayeslora.imports import known
from bayeslora.methods import Method

__all__ = ["at_defaults", "differences", "grown", "without_storage"]

_STORAGE = ("cache_trunk_folder", "cache_trunk_limit")


def without_storage(described: Mapping[str, Any]) -> dict[str, Any]:
    """Where the trunk cache lies and how large it may grow define nothing, and may differ when a comparison goes on."""
    if not isinstance(train := described.get("train"), dict):
        return dict(described)
    return {**described, "train": {name: value for name, value in train.items() if name not in _STORAGE}}


def at_defaults(config: Any, default: Any = None) -> Any:
    """What `bayeslora.parsing.describe` says of a config with the same rows, tasks and classes, but defaults otherwise.

    Args:
        config: A config, or a part of one.
        default: What a part that is a plain value has by default.
    """
    if isinstance(config, Method):
        try:
            return describe(type(config)())
        except TypeError:
            # A method of somebody else's with arguments that have no default.
            return describe(config)
    if is_dataclass(config):
        return {each.name: at_defaults(getattr(config, each.name), _default(each)) for each in fields(config)}
    if isinstance(config, Mapping):
        return {name: at_defaults(value) for name, value in config.items()}
    return default


def _default(of: Field[Any]) -> Any:
    return of.default if of.default_factory is MISSING else of.default_factory()


def grown(
    present: Mapping[str, Any], wanted: Mapping[str, Any], defaults: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    """The config of a file with the rows, tasks and seeds that are new; nothing else may differ.

    Rows, tasks and seeds do not depend on each other, so the cells that are there stay what they are.

    Raises:
        ValueError: Something else differs; the message names it.
    """
    new = json.loads(json.dumps(wanted))
    old = _completed(dict(present), new, json.loads(json.dumps(defaults)))
    if found := differences(_same_names(_fixed_part(old, new)), _same_names(_fixed_part(new, old))):
        raise ValueError(
            f"{path} was made under another config: {'; '.join(found)}. Rows, tasks and seeds can be added; for "
            "another change choose another output folder, or go back to the config of the file."
        )
    added = {name: old[name] | new[name] for name in ("rows", "tasks") if isinstance(old.get(name), dict)}
    if "seeds" in old:
        added["seeds"] = list(dict.fromkeys([*old["seeds"], *new["seeds"]]))
    return new | added


def differences(present: Any, wanted: Any, name: str = "") -> list[str]:
    """Dotted names of the options that differ, with both values."""
    if not (isinstance(present, dict) and isinstance(wanted, dict)):
        return [] if present == wanted else [f"{name} is {json.dumps(present)} there and {json.dumps(wanted)} here"]
    found: list[str] = []
    for key in dict.fromkeys([*present, *wanted]):
        dotted = f"{name}.{key}".lstrip(".")
        if key in present and key in wanted:
            found += differences(present[key], wanted[key], dotted)
        else:
            found.append(f"{dotted} is only {'there' if key in present else 'here'}")
    return found


def _completed(present: Any, wanted: Any, defaults: Any) -> Any:
    """`present` with the options that it lacks and that `wanted` has at their default."""
    if not all(isinstance(each, dict) for each in (present, wanted, defaults)):
        return present
    completed = {name: _completed(value, wanted.get(name), defaults.get(name)) for name, value in present.items()}
    lacking = [name for name in wanted if name not in present and name in defaults and wanted[name] == defaults[name]]
    return completed | {name: wanted[name] for name in lacking}


def _same_names(config: Any) -> Any:
    """`config` with each class under the name of the module that defines it: packages hand classes on."""
    if not isinstance(config, dict):
        return config
    named = {name: _same_names(value) for name, value in config.items()}
    if isinstance(path := named.get("class_path"), str) and (found := known(Method, path)) is not None:
        named["class_path"] = f"{found.__module__}.{found.__qualname__}"
    return named


def _fixed_part(config: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What must not change: the rows and tasks that `other` has too, and the first seed, which selects."""
    common = {
        name: {title: value for title, value in config[name].items() if title in other.get(name, {})}
        for name in ("rows", "tasks")
        if isinstance(config.get(name), dict)
    }
    return config | common | ({"seeds": config["seeds"][:1]} if "seeds" in config else {})

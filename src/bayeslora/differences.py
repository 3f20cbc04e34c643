"""How two configs differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from bayeslora.config import describe
from bayeslora.imports import known
from bayeslora.methods import Method

__all__ = ["at_defaults", "completed", "differences", "same_names"]


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


def completed(present: Any, wanted: Any, defaults: Any) -> Any:
    """`present` with the options that it lacks and that `wanted` has at their default."""
    if not all(isinstance(each, dict) for each in (present, wanted, defaults)):
        return present
    filled = {name: completed(value, wanted.get(name), defaults.get(name)) for name, value in present.items()}
    lacking = [name for name in wanted if name not in present and name in defaults and wanted[name] == defaults[name]]
    return filled | {name: wanted[name] for name in lacking}


def same_names(config: Any) -> Any:
    """`config` with each class under the name of the module that defines it: packages hand classes on."""
    if not isinstance(config, dict):
        return config
    named = {name: same_names(value) for name, value in config.items()}
    if isinstance(path := named.get("class_path"), str) and (found := known(Method, path)) is not None:
        named["class_path"] = f"{found.__module__}.{found.__qualname__}"
    return named

"""How two configs differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from bayeslora.methods import Method
from bayeslora.options.classes import known
from bayeslora.runs.config import describe
from bayeslora.scoring import get_scoring

BEFORE: dict[str, Any] = {
    "chat_template": False,
    "protocol": {
        "further_rates": 0,
        "choose_epochs": False,
        "length_powers": [],
        "mean_per_token": True,
        "base_rows": False,
    },
}
"""What a task's or a comparison's config meant before it had these options, where that is not their default."""


def at_defaults(config: Any, default: Any = None) -> Any:
    """What `bayeslora.options.parsing.describe` says of a config of the same rows, tasks and classes, but defaults
    otherwise.

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
    """`present` with the options that it lacks and that `wanted` has at their default; some meant something else."""
    if not all(isinstance(each, dict) for each in (present, wanted, defaults)):
        return present
    filled = {name: completed(value, wanted.get(name), defaults.get(name)) for name, value in present.items()}
    lacking = [name for name in wanted if name not in present and name in defaults and wanted[name] == defaults[name]]
    before = {name: value for name, value in BEFORE.items() if name in wanted and name not in present}
    return filled | {name: wanted[name] for name in lacking} | before


def same_meaning(config: Any) -> Any:
    """`config` with one name for what may have several.

    Each class has that of the module that defines it (packages hand classes on), and "auto" what it comes to whatever
    the model is: no chat template but for letters.
    """
    if not isinstance(config, dict):
        return config
    named = {name: same_meaning(value) for name, value in config.items()}
    if named.get("chat_template") == "auto" and not get_scoring(named.get("scoring", "cloze")).templated_by_default:
        named["chat_template"] = False
    if isinstance(path := named.get("class_path"), str) and (found := known(Method, path)) is not None:
        named["class_path"] = f"{found.__module__}.{found.__qualname__}"
    return named

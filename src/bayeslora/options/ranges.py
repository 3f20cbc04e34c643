"""The values an option may have: declared in its annotation, checked here for every config and method.

`learning_rate: Annotated[float, Range(0, 10, above=True)]` is a float in (0, 10]; a name for a range that many options
share stands below. `Annotated[str, NameIn(PATH)]` is a name in a registry (`bayeslora.options.registry`). Annotations
without either are checked for their type, and a None must be allowed by the type.
"""

from __future__ import annotations

import inspect
import math
import numbers
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from bayeslora.options.plain import Plain, check_plain
from bayeslora.options.registry import NameIn


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included unless `above` and `below` say otherwise; always finite."""

    low: float
    high: float
    above: bool = False
    """`low` itself is not in it."""
    below: bool = False
    """`high` itself is not in it."""

    def __contains__(self, number: float) -> bool:
        over = number > self.low if self.above else number >= self.low
        return over and (number < self.high if self.below else number <= self.high)

    def __str__(self) -> str:
        least, most = "above" if self.above else "at least", "below" if self.below else "at most"
        return f"{least} {self.low:g} and {most} {self.high:g}"


Count = Annotated[int, Range(1, 10**9)]
"""How many of something, such as steps or items."""
Size = Annotated[int, Range(1, 2**16)]
"""Of a matrix or a layer, or of what is computed at once."""
Draws = Annotated[int, Range(0, 2**16)]
"""Posterior samples; 0 is the mean."""
Seed = Annotated[int, Range(0, 2**32, below=True)]
"""What numpy's generator takes."""
Share = Annotated[float, Range(0, 1)]
ShareBelowOne = Annotated[float, Range(0, 1, below=True)]
Positive = Annotated[float, Range(0, 1e9, above=True)]
AtLeastZero = Annotated[float, Range(0, 1e9)]
Rate = Annotated[float, Range(0, 10, above=True)]
"""A learning rate."""
RateScale = Annotated[float, Range(0, 1000)]
"""A learning rate as a multiple of another."""
StandardDeviation = Annotated[float, Range(0, 1000, above=True)]
Epochs = Annotated[float, Range(0, 1e6)]
WeightDecay = Annotated[float, Range(0, 100)]


def check_options(config: Any, name: str = "") -> None:
    """Whether each field of a config, of its parts and of its methods has a value that its annotation allows.

    Args:
        config: A dataclass, or a method (`bayeslora.methods.Method`), whose fields are the arguments of its `__init__`.
        name: Where it stands in a config file, such as "train", for the message.

    Raises:
        ValueError: One has not.
    """
    hints = _field_hints(type(config)) if is_dataclass(config) else _argument_hints(type(config))
    for field, hint in hints.items():
        check_value(getattr(config, field), hint, f"{name}.{field}" if name else field)


def _field_hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {each.name: hints[each.name] for each in fields(kind)}


def _argument_hints(kind: type) -> dict[str, Any]:
    """Annotations of the arguments of `__init__`, those handed on to base classes included."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if base is not object and (build := vars(base).get("__init__")) is not None:
            hints = _resolved(build)
            parameters = inspect.signature(build).parameters.values()
            named = [each.name for each in parameters if each.kind is not inspect.Parameter.VAR_KEYWORD]
            found |= {name: hints[name] for name in named if name in hints}
    return found


def _resolved(build: Any) -> dict[str, Any]:
    try:
        return get_type_hints(build, include_extras=True)
    except NameError:
        # A method of somebody else's whose annotations are for type checkers alone.
        return {}


def check_value(value: Any, hint: Any, name: str) -> None:
    """Whether a value is one that an annotation allows.

    Args:
        value: Anything.
        hint: Such as `Count | None`.
        name: What it is the value of, for the message.

    Raises:
        ValueError: It is not.
    """
    if hint is Any:
        return
    if get_origin(hint) in (Union, types.UnionType):
        _check_union(value, get_args(hint), name)
    elif value is None and hint is not type(None):
        raise ValueError(f"{name} must not be null; leave it out for its default.")
    elif get_origin(hint) is Annotated:
        base, *notes = get_args(hint)
        check_value(value, base, name)
        for allowed in notes:
            if isinstance(allowed, Range) and value not in allowed:
                raise ValueError(f"{name} must be {allowed}, got {value!r}.")
            if isinstance(allowed, NameIn):
                allowed.check(value, name)
    elif not _fits(value, hint):
        raise ValueError(f"{name} must be {_in_words(hint)}, got {value!r}.")
    elif is_dataclass(value) or hasattr(value, "argument_names"):
        check_options(value, name)
    elif hint is float and not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}.")
    else:
        for inner, kind, label in _inside(value, hint, name):
            check_value(inner, kind, label)


def _check_union(value: Any, kinds: tuple[Any, ...], name: str) -> None:
    """The first kind that the value could be of decides."""
    if value is None and type(None) in kinds:
        return
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    for kind in kinds:
        base = get_args(kind)[0] if get_origin(kind) is Annotated else kind
        if len(kinds) == 1 or value is None or _fits(value, base):
            return check_value(value, kind, name)
    raise ValueError(f"{name} must be {' or '.join(map(_in_words, kinds))}, got {value!r}.")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, what is inside of it left aside; what is not known here fits."""
    origin = get_origin(hint)
    if origin is Literal:
        return value in get_args(hint)
    if hint in (int, float):
        return isinstance(value, numbers.Integral if hint is int else numbers.Real) and not isinstance(value, bool)
    if origin in (list, dict):
        return isinstance(value, list | tuple if origin is list else Mapping)
    if origin is not None or hint is Plain or not isinstance(hint, type):
        return True
    return isinstance(value, hint)


def _inside(value: Any, hint: Any, name: str) -> Iterator[tuple[Any, Any, str]]:
    """The values inside of a list or mapping, each with its annotation and a name."""
    if get_origin(hint) is list:
        for position, inner in enumerate(value):
            yield inner, get_args(hint)[0], f"{name}[{position}]"
    elif get_origin(hint) is dict and get_args(hint)[1] is Plain:
        check_plain(value, name)
    elif get_origin(hint) is dict:
        for key, inner in value.items():
            yield inner, get_args(hint)[1], f"{name}.{key}"


def _in_words(hint: Any) -> str:
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) is Literal:
        allowed = get_args(hint)
        return f"one of {', '.join(map(repr, allowed))}" if len(allowed) > 1 else repr(allowed[0])
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
    named = {list: "a list", dict: "a mapping of names and values"}
    found = words.get(hint) or named.get(get_origin(hint))
    if found:
        return found
    name = str(getattr(hint, "__name__", hint))
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"

"""An option of an adapter is declared once, in its config: range, default and meaning; its method takes them over."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar

Kind = TypeVar("Kind", bound=type)


def options_of(config: type, **defaults: Any) -> Callable[[Kind], Kind]:
    """Class decorator: `config_class` is this one, and each field that it declares itself is an argument of `__init__`.

    The arguments are kept as attributes. Their annotations (with ranges), defaults and descriptions are the fields'.

    Args:
        config: A dataclass derived from a PEFT config, with the section `Args:` in its docstring.
        defaults: Other defaults of arguments of the base classes.
    """
    own = vars(config)["__annotations__"]
    fields = {field.name: field for field in dataclasses.fields(config) if field.name in own}
    hints = {name: _hint(config, field) for name, field in fields.items()}

    def decorate(kind: Kind) -> Kind:
        taken: Any = kind
        build = vars(kind).get("__init__")
        inherited = {
            name: parameter.replace(default=defaults.get(name, parameter.default))
            for name, parameter in _parameters(taken).items()
            if name not in fields
        }

        def __init__(self: Any, **options: Any) -> None:
            for name, field in fields.items():
                value = options.pop(name, field.default)
                setattr(self, name, _made(field) if value in (None, dataclasses.MISSING) else value)
            options = {**defaults, **options}
            if build is None:
                super(taken, self).__init__(**options)
            else:
                build(self, **options)

        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_default(field), annotation=hints[name])
            for name, field in fields.items()
        ]
        this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        generated: Any = __init__
        generated.__signature__ = inspect.Signature([this, *added, *inherited.values()])
        generated.__annotations__ = {each.name: each.annotation for each in (*added, *inherited.values())}
        generated.__qualname__, generated.__module__ = f"{kind.__qualname__}.__init__", kind.__module__
        taken.__init__, taken.config_class = generated, config
        taken.__doc__ = _documented(inspect.cleandoc(kind.__doc__ or ""), config, list(fields))
        return kind

    return decorate


def _parameters(kind: Any) -> dict[str, inspect.Parameter]:
    """The arguments of `__init__`, those handed on to base classes included, with annotations that are no texts."""
    found: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        if base is object or "__init__" not in vars(base):
            continue
        for name, parameter in list(inspect.signature(vars(base)["__init__"]).parameters.items())[1:]:
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD and name not in found:
                hint = _evaluated(parameter.annotation, base.__module__)
                found[name] = parameter.replace(annotation=hint, kind=inspect.Parameter.KEYWORD_ONLY)
    return found


def _hint(config: type, field: dataclasses.Field[Any]) -> Any:
    hint = _evaluated(field.type, config.__module__)
    return hint if field.default is not dataclasses.MISSING else hint | None


def _evaluated(hint: Any, module: str) -> Any:
    return eval(hint, dict(vars(sys.modules[module]))) if isinstance(hint, str) else hint


def _default(field: dataclasses.Field[Any]) -> Any:
    return None if field.default is dataclasses.MISSING else field.default


def _made(field: dataclasses.Field[Any]) -> Any:
    return None if field.default_factory is dataclasses.MISSING else field.default_factory()


def _documented(text: str, config: type, names: list[str]) -> str:
    """A docstring whose section `Args:` begins with the entries that the config's has for `names`."""
    entries = re.findall(r"^    (\w+): (.*\n(?:(?:     +.*)?\n)*)", inspect.cleandoc(config.__doc__ or "") + "\n", re.M)
    added = "".join(f"    {name}: {meaning.rstrip()}\n" for name, meaning in entries if name in names)
    if "\nArgs:\n" in text:
        return text.replace("\nArgs:\n", f"\nArgs:\n{added}", 1)
    head, raises, tail = text.partition("\nRaises:\n")
    return f"{head.rstrip()}\n\nArgs:\n{added}{raises}{tail}"

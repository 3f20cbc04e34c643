"""What the content of a config file may name, checked before the parser sees it.

The parser imports whatever stands where a class is expected, and where options are grouped also what stands in their
place. A file may come from somebody else, so here nothing passes but options, plain data, and methods that are known
(`bayeslora.options.classes`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from bayeslora.options.classes import known


def check_content(content: Any, kind: Any, name: str = "") -> None:
    """Refuse content of a file that has code imported or objects built.

    Args:
        content: What the YAML says.
        kind: The config class, or the type of the option.
        name: Dotted name of the option; "" for the whole file.

    Raises:
        ValueError: A method is not known, another class is named, or an option stands in the place of a group of them.
    """
    if content is None:
        if name and is_dataclass(kind):
            raise ValueError(f"{name} must not be null; leave it out for its defaults.")
        return
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        for key, inner in _mapping(content, name).items():
            # The parser takes `train.seed: 1` for `train: {seed: 1}`.
            head, _, rest = str(key).partition(".")
            inner = {rest: inner} if rest else inner
            if head in hints:
                check_content(inner, hints[head], _join(name, head))
            elif head == "class_path" and (field := _field_of_class(hints)):
                raise ValueError(
                    f"{name or 'a config'} must be a mapping of options, of which {field} is a class, but names a "
                    f"class itself; write {field}: {{class_path: {inner}}} there."
                )
            else:
                _refuse_classes({head: inner}, name)
    elif _is_named_by_path(kind):
        _check_class(content, kind, name)
    elif get_origin(kind) is dict and _names_classes(get_args(kind)[1]):
        for key, inner in _mapping(content, name).items():
            check_content(inner, get_args(kind)[1], _join(name, str(key)))
    else:
        _refuse_classes(content, name)


def named_by_path(kind: Any) -> Iterator[type]:
    """Base classes of the objects in a config that are named by their dotted paths: that of methods."""
    if is_dataclass(kind):
        for inner in get_type_hints(kind).values():
            yield from named_by_path(inner)
    elif _is_named_by_path(kind):
        yield kind
    for inner in get_args(kind):
        yield from named_by_path(inner)


def _field_of_class(hints: Mapping[str, Any]) -> str | None:
    """The option of a config whose value is named by its path, such as a row's `method`."""
    return next((field for field, kind in hints.items() if _is_named_by_path(kind)), None)


def _names_classes(kind: Any) -> bool:
    return is_dataclass(kind) or _is_named_by_path(kind)


def _is_named_by_path(kind: Any) -> bool:
    """Whether values are objects of classes that are named by their dotted paths, as methods are."""
    return isinstance(kind, type) and hasattr(kind, "argument_names")


def _check_class(content: Any, kind: type, name: str) -> None:
    content = {"class_path": content} if isinstance(content, str) else _mapping(content, name)
    # As with groups, `init_args.r: 4` is `init_args: {r: 4}`, but there is nothing below a class path.
    path = content.get("class_path")
    if path is not None and (not isinstance(path, str) or known(kind, path) is None):
        raise ValueError(
            f"{name}: class_path {path!r} is no method of this installation, and a file does not decide what is "
            f"imported. If you trust this class, name it yourself: --allow_method {path}, or in Python "
            f"load_run(..., allow_method={path!r})."
        )
    if "class_path" not in content and isinstance(content.get("method"), Mapping):
        raise ValueError(f"{name} is a method itself; write its class_path and init_args there, without method.")
    for key, inner in content.items():
        if key != "class_path":
            _refuse_classes({key: inner}, name)


def _refuse_classes(content: Any, name: str) -> None:
    """The parser builds any class that a `class_path` names, also one in a text that is YAML again."""
    if isinstance(content, Mapping):
        for key, inner in content.items():
            if "class_path" in str(key):
                raise ValueError(f"{name} must be plain data, but names a class: {key}: {inner!r}.")
            _refuse_classes(inner, _join(name, str(key)))
    elif isinstance(content, list | tuple | set):
        for inner in content:
            _refuse_classes(inner, name)
    elif isinstance(content, str) and "class_path" in content:
        raise ValueError(f"{name} must be plain data, but names a class: {content!r}.")


def _mapping(content: Any, name: str) -> Mapping[Any, Any]:
    if not isinstance(content, Mapping):
        raise ValueError(f"{name or 'a config'} must be a mapping of options and their values, got {content!r}.")
    return content


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key

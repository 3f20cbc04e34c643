"""Kinds of one thing: a class with a name in a file of a folder, found by the folder and looked up by the name."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from bayeslora.options.classes import subclasses

Base = TypeVar("Base")


class Registry(Generic[Base]):
    """The named classes derived from `base`, however far: each file of the folder is imported when one is looked up.

    A class counts if it gives itself a `name`, so bases that several kinds share need none. Two classes of one name are
    an error. `scoring: Annotated[str, NameIn("bayeslora.scoring.SCORINGS")]` is an option that takes such a name.

    Args:
        base: What the kinds are derived from; it has a `name`.
        package: Dotted name of the folder.
        outside: Whether kinds in other modules that are imported are found by their names too.
    """

    def __init__(self, base: type[Base], package: str, *, outside: bool = True):
        self._base, self._package, self._outside = base, package, outside

    def classes(self) -> list[type[Base]]:
        """The kinds, by name.

        Raises:
            ValueError: Two of them have the same name.
        """
        return [kind for _, kind in sorted(self._by_name().items())]

    def names(self) -> list[str]:
        """Their names, sorted."""
        return sorted(self._by_name())

    def get(self, name: str) -> type[Base]:
        """The kind called `name`.

        Raises:
            ValueError: There is none; the message has the nearest right name.
        """
        return self._named(name, self._base.__name__.lower())

    def check(self, name: str, option: str) -> None:
        """Refuse a value of `option` that is no name of a kind.

        Raises:
            ValueError: As `get`.
        """
        self._named(name, option)

    def _named(self, name: str, option: str) -> type[Base]:
        kinds = self._by_name()
        if name not in kinds:
            hint = did_you_mean(str(name), kinds)
            raise ValueError(f"{option} must be one of {sorted(kinds)}, got {name!r}.{hint}")
        return kinds[name]

    def _by_name(self) -> dict[str, type[Base]]:
        for module in pkgutil.iter_modules(importlib.import_module(self._package).__path__):
            importlib.import_module(f"{self._package}.{module.name}")
        found: dict[str, type[Base]] = {}
        for kind in subclasses(self._base):
            if not vars(kind).get("name") or inspect.isabstract(kind) or not self._is_seen(kind):
                continue
            name: str = vars(kind)["name"]
            # A cell of a notebook that was run again defines its class again; the last one counts.
            if (other := found.get(name)) is not None and _path(other) != _path(kind):
                raise ValueError(f"{_path(other)} and {_path(kind)} are both called {name!r}; give one another name.")
            found[name] = kind
        return found

    def _is_seen(self, kind: type[Base]) -> bool:
        return self._outside or kind.__module__.startswith(f"{self._package}.")


@dataclass(frozen=True)
class NameIn:
    """As a note of an annotation: the names in a registry, which is imported when a value is checked."""

    path: str
    """Dotted path of the registry."""

    def check(self, name: str, option: str) -> None:
        """As `Registry.check`."""
        module, _, registry = self.path.rpartition(".")
        getattr(importlib.import_module(module), registry).check(name, option)


def names_of_classes(package: str) -> list[str]:
    """Names of the classes in the files of a folder that give themselves a `name`, read without importing any."""
    spec = importlib.util.find_spec(package)
    folders = () if spec is None else spec.submodule_search_locations or ()
    files = [path for folder in folders for path in Path(folder).glob("*.py")]
    classes = [each for path in files for each in ast.parse(path.read_bytes()).body if isinstance(each, ast.ClassDef)]
    return sorted(each.name for each in classes if any(_gives_name(line) for line in each.body))


def _gives_name(line: ast.stmt) -> bool:
    assigned = isinstance(line, ast.Assign | ast.AnnAssign) and line.value is not None
    return assigned and ast.unparse(line).startswith(("name = ", "name: "))


def did_you_mean(wrong: str, known: Iterable[str], number: int = 1, cutoff: float = 0.6) -> str:
    """The end of an error message: " Did you mean 'x' or 'y'?" for the nearest known names, "" where none is near.

    >>> did_you_mean("Clozze", ["cloze", "letter"])
    " Did you mean 'cloze'?"
    """
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(wrong.lower(), by_lower, n=number, cutoff=cutoff)
    return f" Did you mean {' or '.join(repr(by_lower[name]) for name in close)}?" if close else ""


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"

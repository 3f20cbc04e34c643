"""Classes that are named by dotted paths: a file names only what is imported already, its user names anything.

A config, a run or a results file may come from somebody else, and importing a module runs its code. So what reads such
a file looks a path up with `known`, which imports nothing; `permit` imports what the user has named in a call or on the
command line, and from then on it is known.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from typing import TypeVar

Base = TypeVar("Base")


def known(base: type[Base], path: str) -> type[Base] | None:
    """The class derived from `base` that a dotted path or a bare class name stands for; None where none is imported."""
    module, _, name = path.rpartition(".")
    for found in subclasses(base):
        if path in (f"{found.__module__}.{found.__qualname__}", found.__name__):
            return found
    # Packages hand classes on under a shorter path.
    handed_on = vars(sys.modules[module]).get(name) if module in sys.modules else None
    return handed_on if isinstance(handed_on, type) and issubclass(handed_on, base) else None


def permit(base: type[Base], path: str) -> type[Base]:
    """Import the class at a dotted path, which must be derived from `base`.

    Raises:
        ImportError: There is no such module, or no such class in it.
        TypeError: It is no class derived from `base`.
    """
    if (found := known(base, path)) is not None:
        return found
    module, _, name = path.rpartition(".")
    if not module:
        raise ImportError(f"expected a dotted path such as my_package.My{base.__name__}, got {path!r}.")
    try:
        imported = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ImportError(f"{path} cannot be imported ({error}); check the spelling, and PYTHONPATH.") from error
    if not (isinstance(imported, type) and issubclass(imported, base)):
        raise TypeError(f"{path} should be a class derived from {base.__name__}, but it is {imported!r}.")
    return imported


def subclasses(base: type[Base]) -> Iterator[type[Base]]:
    """All classes derived from `base` that are imported, however far."""
    for child in base.__subclasses__():
        yield child
        yield from subclasses(child)

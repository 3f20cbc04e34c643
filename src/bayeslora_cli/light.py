"""bayeslora in two steps: its modules one by one, and later the package itself, which brings torch and PEFT.

`import bayeslora` registers every adapter type with PEFT, so it imports PEFT, which takes seconds. What a call says can
be found out without: the registries, ranges and settings that the options are made of are modules of their own.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def package_later(name: str = "bayeslora") -> Iterator[Callable[[], None]]:
    """Inside, modules of a package can be imported though its `__init__` has not run; it does when it is asked to.

    Where it was not asked to, the modules are forgotten at the end, so that whoever imports the package then gets it
    whole. Nothing happens where it is imported already.

    Yields:
        Runs the package's `__init__`.
    """
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        yield lambda: None
        return
    loader, module = spec.loader, importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    whole = False

    def run() -> None:
        nonlocal whole
        loader.exec_module(module)
        whole = True

    try:
        yield run
    finally:
        if not whole:
            for each in [each for each in sys.modules if each == name or each.startswith(f"{name}.")]:
                del sys.modules[each]

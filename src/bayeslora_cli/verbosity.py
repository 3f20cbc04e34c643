"""What other libraries say that a user of the command can do nothing about: hidden, unless `--verbose` asks for it.

The libraries say most of it while they are imported, so this stands before any of them is. It holds for the process of
the command line; programs that import bayeslora hear everything.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

VERBOSE = ("-v", "--verbose")

_LOGGERS = (
    # Kernels of other processors that its package carries, and cannot load on this one.
    "torchao",
    # What torchao registers in a way that torch will no longer want.
    "torch.utils._pytree",
    # A kernel that only Intel processors have a package for; int8 products go through float16, for each layer.
    "bitsandbytes",
)

_WARNINGS: tuple[tuple[str, type[Warning]], ...] = (
    # Renamings to come, inside of other libraries.
    ("", FutureWarning),
    # The Trainer pins memory unless told otherwise, also where there is no accelerator to copy it to.
    (".*pin_memory", UserWarning),
)
"""Beginnings of messages as regular expressions, and their categories."""


def is_verbose(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for everything; known before it is parsed, which imports libraries."""
    return any(argument in VERBOSE for argument in arguments)


def hide_messages() -> None:
    """Hide the warnings above from here on; errors are shown."""
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    for message, category in _WARNINGS:
        warnings.filterwarnings("ignore", message, category)

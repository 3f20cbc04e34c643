"""Dataset preparation without a progress bar for each of its steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Hold back the progress bars of `datasets`."""
    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()

"""What a person sees while it works: one progress line with the time left, lines above it, and tables.

All of it goes to standard error; standard output is for results. Where standard error is no terminal, plain lines take
the place of the progress line, at most one in half a minute.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager, nullcontext
from itertools import groupby
from typing import TypeVar

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from bayeslora.system.log import logger
from bayeslora.system.processes import is_main

T = TypeVar("T")

_PERIOD = 30.0
"""Seconds between two plain lines."""
_LINE = "{desc} {percentage:3.0f}% {bar:20} {n_fmt}/{total_fmt}, {remaining} left{postfix}"

_open: list[Progress] = []
"""The pieces of work that are under way, each one a part of the one before it."""


class Progress:
    """How far a piece of work is; of work inside other work the outer line says it too, behind its own numbers.

    Args:
        what: A word for the work, such as "train".
        total: Its steps.
        unit: What a step is, in the plural.
        done: How many were done before.
        clock: Seconds, of any beginning.
        shown: Whether it says anything; else it only counts.

    Attributes:
        done: Steps that have ended.
        first: How many of them were done before.
    """

    def __init__(
        self,
        what: str,
        total: int,
        unit: str,
        done: int = 0,
        clock: Callable[[], float] = time.monotonic,
        shown: bool = True,
    ) -> None:
        self.what, self.total, self.unit, self.done = what, total, unit, done
        self._clock, self.first, self._shown = clock, done, shown
        self._began = self._said = clock()
        self._outer = _open[-1] if shown and _open else None
        self._bar: tqdm | None = None
        if shown and self._outer is None and sys.stderr.isatty():
            self._bar = tqdm(
                desc=what, total=total, initial=done, bar_format=_LINE, leave=False, dynamic_ncols=True, smoothing=0.1
            )

    def advance(self, steps: int = 1) -> None:
        """So many steps have ended."""
        self.done += steps
        if self._outer is not None:
            self._outer.note(f"{self.what} {self.done}/{self.total}")
        elif self._bar is not None:
            self._bar.update(steps)
        elif self._shown and self._clock() - self._said >= _PERIOD and self.done < self.total:
            self._said = self._clock()
            say(f"{self.what}: {self.done} of {self.total} {self.unit}, {self.left}")

    def ended(self, text: str, seconds: float) -> None:
        """One step has ended after so long, with a line about it; for steps that take long."""
        self._said = self._clock()
        self.advance()
        left = f"; {self.left}" if self.done < self.total else ""
        say(f"[{self.done}/{self.total}] {text}  ({duration(seconds)}{left})")

    def skip(self, steps: int = 1) -> None:
        """So many steps had been done before; they do not count as fast ones."""
        self.done += steps
        self.first += steps
        if self._bar is not None:
            self._bar.initial += steps
            self._bar.n += steps
            self._bar.refresh()

    def grow(self, steps: int = 1) -> None:
        """So many steps have come to the work."""
        self.total += steps
        if self._bar is not None:
            self._bar.total = self.total
            self._bar.refresh()

    def note(self, text: str) -> None:
        """What happens in the step under way."""
        if self._outer is not None:
            self._outer.note(f"{self.what} {self.done}/{self.total}, {text}")
        elif self._bar is not None:
            self._bar.set_postfix_str(text)

    def write(self, text: str) -> None:
        """A line above this one; without a terminal it ends with the time left, and takes the place of a plain one."""
        if self._bar is None and self.first < self.done < self.total:
            text = f"{text}   {self.left}"
        self._said = self._clock()
        say(text)

    @property
    def nested(self) -> bool:
        """Whether this is a part of other work that has a line."""
        return self._outer is not None

    @property
    def left(self) -> str:
        """The time that the remaining steps take at the rate of those so far, in words."""
        steps = self.done - self.first
        if not steps:
            return "time left unknown"
        return f"about {duration((self.total - self.done) * (self._clock() - self._began) / steps)} left"

    def close(self) -> None:
        """Take the line away."""
        if self._bar is not None:
            self._bar.close()


@contextmanager
def headlines() -> Iterator[None]:
    """Inside, bayeslora logs warnings and errors alone: what parts of long work say of themselves would bury its lines.

    Where the log has everything (`--verbose`) it stays so.
    """
    level = logger.level
    if logger.getEffectiveLevel() > logging.DEBUG:
        logger.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def progress(what: str, total: int, unit: str = "items", done: int = 0, show: bool = True) -> Iterator[Progress]:
    """A `Progress` while the work inside is under way; silent in processes but the main one, and without `show`."""
    if not (show and is_main()):
        yield Progress(what, total, unit, done, shown=False)
        return
    line = Progress(what, total, unit, done)
    _open.append(line)
    try:
        # What is logged stands above the line, not in it.
        with logging_redirect_tqdm() if line._bar is not None else nullcontext():
            yield line
    finally:
        _open.remove(line)
        line.close()


def track(work: Iterable[T], what: str, unit: str, *, total: int | None = None, show: bool = True) -> Iterator[T]:
    """Go through `work` with a progress line; work that does not know its length needs the `total`."""
    with progress(what, len(work) if isinstance(work, Sized) else total or 0, unit, show=show) as line:
        for each in work:
            yield each
            line.advance()


def say(text: str) -> None:
    """A line of text, above the progress line if there is one."""
    if is_main():
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(42), duration(200), duration(7300)
    ('42 s', '3 min', '2 h 2 min')
    """
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def text_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns for a terminal: names on the left, numbers on the right.

    >>> print(text_table(["method", "nll"], [["lora", "1.610"], ["bayesian_lora", "1.380"]]))
    method           nll
    lora           1.610
    bayesian_lora  1.380
    """
    lines = [list(heads), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def aligned(markdown: str) -> str:
    """Markdown whose tables have the form of `text_table`.

    >>> print(aligned("sums:\\n\\n| row | n |\\n|---|---:|\\n| one | 1 |"))
    sums:
    <BLANKLINE>
    row  n
    one  1
    """
    parts = []
    for is_table, lines in groupby(markdown.splitlines(), key=lambda line: line.startswith("|")):
        found = list(lines)
        rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in found]
        parts.append(text_table(rows[0], rows[2:]) if is_table else "\n".join(found))
    return "\n".join(parts)

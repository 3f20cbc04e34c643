"""What is shown while it works: a line on a terminal, plain lines elsewhere, one line for work inside other work."""

import io
import logging
from contextlib import redirect_stderr

import pytest

from bayeslora.system import console
from bayeslora.system.console import Progress, duration, headlines, progress, say, text_table, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_one_line_and_lines_above_it():
    with redirect_stderr(Terminal()) as terminal, progress("train", 4, "steps") as line:
        line.advance()
        say("said")
        line.advance()
        logging.getLogger("bayeslora").warning("logged")
    shown = terminal.getvalue()
    assert "train  25%" in shown and "2/4" in shown and " left" in shown
    # The line is wiped before another one is written, and at the end.
    assert shown.index("\r") < shown.index("said\n") and not shown.endswith("left")
    assert shown.count("\n") == shown.count("said\n") + shown.count("logged\n")


def test_work_inside_other_work_is_said_in_its_line():
    with redirect_stderr(Terminal()) as terminal, progress("compare", 2, "cells") as outer:
        with progress("train", 3, "steps") as inner:
            assert inner.nested
            inner.advance()
            with progress("predict", 5) as innermost:
                innermost.advance(2)
        outer.ended("lora: fine", 1.0)
    shown = terminal.getvalue()
    assert ", train 1/3" in shown and ", train 1/3, predict 2/5" in shown
    assert "[1/2] lora: fine  (1 s; about" in shown
    assert not console._open


def test_plain_lines_come_at_most_every_half_minute(capsys):
    now = [0.0]
    line = Progress("predict", 100, "items", clock=lambda: now[0])
    for _ in range(100):
        now[0] += 1.0
        line.advance()
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "predict: 30 of 100 items, about 70 s left",
        "predict: 60 of 100 items, about 40 s left",
        "predict: 90 of 100 items, about 10 s left",
    ]


def test_what_was_done_before_does_not_count_as_fast(capsys):
    now = [0.0]
    line = Progress("train", 10, "steps", done=5, clock=lambda: now[0])
    now[0] = 40.0
    line.advance()
    assert capsys.readouterr().err == "train: 6 of 10 steps, about 3 min left\n"


def test_short_work_says_nothing_without_a_terminal_and_keeps_standard_output_for_results(capsys):
    assert list(track([1, 2, 3], "predict", "items")) == [1, 2, 3]
    with progress("train", 1) as line:
        line.advance()
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")


def test_an_error_takes_the_line_away():
    with redirect_stderr(Terminal()), pytest.raises(KeyError), progress("train", 3):
        raise KeyError
    assert not console._open


def test_the_parts_of_long_work_are_silent_unless_everything_is_asked_for(caplog):
    logger = logging.getLogger("bayeslora")
    for level, shown in ((logging.INFO, ["later", "bad"]), (logging.DEBUG, ["details", "later", "bad"])):
        caplog.clear()
        with caplog.at_level(level, logger="bayeslora"):
            with headlines():
                logger.info("details")
            logger.info("later")
            with headlines():
                logger.warning("bad")
        assert caplog.messages == shown


def test_tables_and_times():
    assert text_table(["a", "number"], [["long name", "1.5"], ["b", "-10.25"]]).splitlines() == [
        "a          number",
        "long name     1.5",
        "b          -10.25",
    ]
    assert [duration(seconds) for seconds in (0.2, 99, 100, 3600, 5430)] == [
        "0 s", "99 s", "2 min", "1 h 0 min", "1 h 30 min",
    ]  # fmt: skip

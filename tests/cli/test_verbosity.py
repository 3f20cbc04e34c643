"""What other libraries say: hidden by default, shown with -v."""

import logging
import warnings

import pytest

from bayeslora_cli import verbosity


@pytest.fixture
def fresh_loggers():
    loggers = [logging.getLogger(name) for name in verbosity._LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.NOTSET)
    yield loggers
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def test_hidden_messages_are_those_that_are_named_and_no_others(fresh_loggers):
    assert all(logger.isEnabledFor(logging.WARNING) for logger in fresh_loggers)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        verbosity.hide_messages()
        warnings.warn("renamed", FutureWarning, stacklevel=1)
        warnings.warn("'pin_memory' argument is set as true but no accelerator is found", UserWarning, stacklevel=1)
        warnings.warn("your labels look odd", UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in heard] == ["your labels look odd"]
    assert not any(logger.isEnabledFor(logging.WARNING) for logger in fresh_loggers)
    assert all(logger.isEnabledFor(logging.ERROR) for logger in fresh_loggers)
    assert logging.getLogger("bayeslora").isEnabledFor(logging.WARNING)


@pytest.mark.parametrize(("given", "verbose"), [("report run", False), ("report run -v", True), ("x --verbose", True)])
def test_it_is_asked_for_anywhere_in_the_call(given, verbose):
    assert verbosity.is_verbose(given.split()) is verbose

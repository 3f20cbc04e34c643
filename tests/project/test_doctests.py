"""The examples in docstrings: every module that has some."""

import doctest
import importlib
from pathlib import Path

import pytest

import bayeslora

PACKAGE = Path(bayeslora.__file__).parent
MODULES = sorted(
    ".".join(("bayeslora", *path.relative_to(PACKAGE).with_suffix("").parts))
    for path in PACKAGE.rglob("*.py")
    if "\n    >>> " in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_give_what_they_say(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0, f"{result.failed} examples of {name} differ; see above"


def test_the_main_public_modules_have_examples():
    expected = {
        "adapters.sampling",
        "metrics.scores",
        "prediction.conformal",
        "prediction.predictive",
        "tasks.reading.finder",
        "training.elbo",
    }
    assert {f"bayeslora.{name}" for name in expected} <= set(MODULES)

"""What is imported from packages that find their names late is there: no type checker can know it."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src"
LATE = {
    ".".join(file.parent.relative_to(SOURCES).parts): file
    for file in sorted(SOURCES.rglob("__init__.py"))
    if "__getattr__ = late(" in file.read_text("utf-8")
}


def imported(folder: Path) -> Iterator[tuple[str, str, str]]:
    """File, package and name of each import from such a package."""
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module in LATE:
                yield from ((str(file.relative_to(ROOT)), node.module, name.name) for name in node.names)


def has(package: str, name: str) -> bool:
    folder = LATE[package].parent
    return (
        (folder / name).is_dir() or (folder / f"{name}.py").is_file() or hasattr(importlib.import_module(package), name)
    )


@pytest.mark.parametrize("folder", ["src", "studies", "examples", "docs", "tests"])
def test_names_that_are_imported_from_late_packages_are_there(folder):
    missing = [f"{file}: {package}.{name}" for file, package, name in imported(ROOT / folder) if not has(package, name)]
    assert not missing


def test_packages_are_late_and_a_name_that_is_nowhere_is_missed():
    assert "bayeslora.runs" in LATE
    assert has("bayeslora.runs", "train")
    assert not has("bayeslora.runs", "choice_count")

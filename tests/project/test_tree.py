"""The folders: tests mirror the rooms of the package, and CONTRIBUTING describes those that are there."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def folders(path: Path) -> set[str]:
    """Names of the folders that hold Python files of their own."""
    return {folder.name for folder in path.iterdir() if folder.is_dir() and any(folder.glob("*.py"))}


ROOMS = folders(ROOT / "src" / "bayeslora")
TESTED = folders(ROOT / "tests")


def test_tests_mirror_the_rooms():
    assert {"campaign", "cli", "project"} == TESTED - ROOMS
    assert set() == ROOMS - TESTED


def test_contributing_describes_every_room():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = page[page.index("## Where things are") : page.index("`src/bayeslora_cli/`")]
    cells = " ".join(re.findall(r"^\| (`[a-z`, ]+) \|", table, re.MULTILINE))
    assert set(re.findall(r"`(\w+)`", cells)) == ROOMS


def test_pytest_finds_the_helpers_of_every_folder():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    assert set(settings["pythonpath"]) == {"tests", *(f"tests/{name}" for name in TESTED - {"campaign"})}


def test_the_library_does_not_import_its_command_line():
    source = ROOT / "src" / "bayeslora"
    files = [
        path for path in source.rglob("*.py") if re.search(r"(from|import) bayeslora_cli", path.read_text("utf-8"))
    ]
    assert sorted(files) == [source / "__init__.py", source / "__main__.py"], "but for `python -m bayeslora`"

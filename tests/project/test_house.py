"""The ground plan: few names at the top, no loose module, short files, and no circle of imports of files or rooms."""

import ast
import statistics
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "src"
FILES = sorted(SOURCES.rglob("*.py"))
LOOSE = {"__init__.py", "__main__.py", "py.typed"}


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(SOURCES).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(file): file for file in FILES}


def imports(file: Path) -> set[str]:
    """What a module imports, inside of functions and for type checkers too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            full = {f"{node.module}.{name.name}" for name in node.names}
            found |= {name if name in MODULES else str(node.module) for name in full}
    return found


def graph() -> dict[str, set[str]]:
    found = {name: imports(file) for name, file in MODULES.items()}
    return {name: {other for other in others if other in MODULES and other != name} for name, others in found.items()}


def test_no_file_imports_itself_through_others():
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def rooms() -> dict[str, set[str]]:
    """The rooms that each room imports."""
    found: dict[str, set[str]] = {}
    for name, file in MODULES.items():
        if name.count(".") > 1:
            imported = {full.split(".")[1] for full in imports(file) if full.startswith("bayeslora.")}
            found.setdefault(name.split(".")[1], set()).update(imported)
    return {room: others - {room} for room, others in found.items()}


def test_no_room_imports_itself_through_others():
    try:
        TopologicalSorter(rooms()).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_at_most_twenty_names_stand_at_the_top_and_none_is_a_loose_module():
    top = {path.name for path in (SOURCES / "bayeslora").iterdir() if path.name != "__pycache__"}
    files = {path.name for path in (SOURCES / "bayeslora").iterdir() if path.is_file()}
    assert len(top - LOOSE) <= 20, sorted(top)
    assert files == LOOSE


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_no_file_is_longer_than_350_lines(file):
    assert len(file.read_text("utf-8").splitlines()) <= 350


def handed_on(file: Path) -> set[str]:
    """The names in a file's `__all__` that it does not define."""
    body = ast.parse(file.read_text("utf-8")).body
    defined = {node.name for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    assigned = {ast.unparse(node.targets[0]): node.value for node in body if isinstance(node, ast.Assign)}
    return set(ast.literal_eval(assigned.get("__all__", ast.List([])))) - defined - set(assigned)


@pytest.mark.parametrize("file", [file for file in FILES if "__all__ = " in file.read_text("utf-8")], ids=module_name)
def test_all_stands_where_names_of_others_are_handed_on(file):
    """What a file defines is public where its name has no underscore."""
    assert handed_on(file)


@pytest.mark.parametrize("file", [file for file in FILES if file.name == "__init__.py"], ids=module_name)
def test_a_package_that_hands_on_names_says_which(file):
    assert handed_on(file) or not {name for name in imports(file) if name.startswith("bayeslora")}


def test_functions_are_short():
    """The median of all lines, and the share with many lines of code: no docstring, comments or blank lines."""
    functions = [
        node
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert statistics.median(int(node.end_lineno or 0) - node.lineno + 1 for node in functions) <= 7
    assert sum(len(code_lines(node)) > 40 for node in functions) <= 0.005 * len(functions)


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[int]:
    statements = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return {node.lineno for statement in statements for node in ast.walk(statement) if hasattr(node, "lineno")}

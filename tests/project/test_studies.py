"""The studies: each says its command and its answer, the index has them all, and answers are what the files hold."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
STUDIES = ROOT / "studies"
INDEX = STUDIES / "README.md"
READMES = sorted(path for path in STUDIES.rglob("README.md") if path != INDEX and "runs" not in path.parts)
ANSWERED = [path for path in READMES if "**Answer.**" in path.read_text(encoding="utf-8")]
FILES = sorted(
    path
    for suffix in ("json", "jsonl", "yaml", "md", "py")
    for path in STUDIES.rglob(f"*.{suffix}")
    if len(path.relative_to(STUDIES).parts) > 2 and "runs" not in path.parts
)


def name(path: Path) -> str:
    return str(path.relative_to(STUDIES))


def answer(readme: Path) -> str:
    """The paragraph after **Answer.**, on one line."""
    found = re.search(r"\*\*Answer\.\*\*(.*?)\n\n", readme.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return " ".join(found.group(1).split())


def numbers_of(value: Any) -> Iterator[float]:
    """All numbers in parsed JSON."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from numbers_of(part)
    elif isinstance(value, int | float):
        yield float(value)


def measured(study: Path) -> list[float]:
    """All numbers of a study's tables and records, but for the predictions of single items."""
    found: list[float] = []
    for path in study.rglob("*"):
        text = path.read_text(encoding="utf-8") if path.suffix in {".json", ".jsonl", ".md"} else ""
        if path.suffix == ".md" and path.name != "README.md":
            found += map(float, re.findall(r"\d+\.\d+", text))
        elif path.suffix == ".json" or (path.suffix == ".jsonl" and path.name != "results.jsonl"):
            for record in [text] if path.suffix == ".json" else text.splitlines():
                found += numbers_of(json.loads(record))
    return found


def not_measured(text: str, found: list[float]) -> list[str]:
    """The decimals of a text (two places or more) that no measured number rounds to."""
    decimals = re.findall(r"(?<![\w.])\d+\.\d{2,}(?![\w.]*\.\d)(?=\W)", text)
    return [word for word in decimals if not any(same(word, number) for number in found)]


def same(word: str, number: float) -> bool:
    places = len(word.partition(".")[2])
    return abs(abs(number) - float(word)) <= 0.5 * 10**-places + 1e-9


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_result_and_script_has_a_readme_with_its_command(path):
    folders = [folder for folder in path.parents if STUDIES in folder.parents]
    readme = next((folder / "README.md" for folder in folders if (folder / "README.md").is_file()), None)
    assert readme is not None, f"{name(path)} has no README.md beside or above it"
    assert re.search(r"^\s*(\w+=\S+ )*(bayeslora|python) \S+", readme.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("readme", READMES, ids=name)
def test_the_index_has_every_study_with_its_answer(readme):
    index = INDEX.read_text(encoding="utf-8")
    assert f"]({readme.parent.relative_to(STUDIES)})" in index, (
        f"a row for {name(readme)} is missing in studies/README.md"
    )
    if readme in ANSWERED:
        assert answer(readme) in index


@pytest.mark.parametrize("readme", ANSWERED, ids=name)
def test_answers_are_what_was_measured(readme):
    assert not_measured(answer(readme), measured(readme.parent)) == []


def test_an_answer_that_was_not_measured_is_found():
    assert len(ANSWERED) >= 20
    assert not_measured("0.489 of 1.2571, not 0.49 or 1.0; version 1.2.3", [0.4887, 1.25706]) == []
    assert not_measured("0.489, and 0.481.", [0.4887]) == ["0.481"]


@pytest.mark.parametrize(("place", "study", "items"), [(0, "demo/seed0", 200), (1, "fair", 1000)])
def test_a_table_of_the_readme_is_that_of_its_study(place, study, items):
    report = (STUDIES / "methods" / study / "report.md").read_text(encoding="utf-8")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| \| accuracy \| NLL \| ECE \|\n\|[-|]+\|\n((?:\|.*\|\n)+)", text, re.MULTILINE)
    assert len(tables) == 2
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in tables[place].splitlines()]
    assert len(rows) == 6
    scores = report[report.index(f"### Scores on the {items} test items") :]
    for title, *values in rows:
        line = re.search(rf"^\| {re.escape(title)} \|(.*)$", scores, re.MULTILINE)
        assert line is not None, title
        shown = [cell.strip(" *≈").split(" ")[0] for cell in line[1].split("|")[:3]]
        assert shown == values, title

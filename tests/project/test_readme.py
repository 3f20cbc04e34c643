"""The Python of the README, run as it stands there, but on a tiny model and a small file."""

import json
import re
from pathlib import Path

import pytest
from test_cli import data, tiny_base  # noqa: F401

from other_processes import run_copy

ROOT = Path(__file__).parents[2]


@pytest.fixture
def ten_lines(tiny_base, data, tmp_path) -> str:  # noqa: F811
    """The first Python block of the README, with the numbers printed in full at its end."""
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[1]
    tiny = {"offline:smollm2": tiny_base, "arc_easy": data, "runs/readme": tmp_path / "readme", "[28, 29]": "[2, 3]"}
    for given, instead in tiny.items():
        assert given in code
        code = code.replace(given, str(instead))
    assert len(re.findall(r"^\S", code, re.MULTILINE)) == 10
    return code + "import json\nnumbers = json.dumps(prediction.samples.tolist())\n"


def test_the_ten_lines_give_the_same_numbers_in_two_processes(ten_lines, tmp_path):
    script = ten_lines + "print(numbers)"
    other = run_copy(script, tmp_path)
    assert other.returncode == 0, other.stderr
    here: dict[str, str] = {}
    exec(ten_lines, here)
    numbers = json.loads(other.stdout.splitlines()[-1])
    assert len(numbers) == 10 and json.loads(here["numbers"]) == numbers

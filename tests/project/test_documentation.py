"""The pages: their links resolve, their code runs, and every paper is in the index. No sphinx needed."""

import json
import re
import shlex
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch

from bayeslora_cli.main import main
from conftest import byte_level_tokenizer, tiny_llama

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
STUDIES = ROOT / "studies"
QUICKSTART = DOCS / "start" / "quickstart.md"
NOTEBOOK = DOCS / "notebooks" / "calibrated_adapter.ipynb"
BUILT = DOCS / "reference" / "api"
PAGES = sorted(
    page
    for page in (*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *STUDIES.rglob("*.md"), ROOT / "examples" / "README.md")
    if BUILT not in page.parents and page.name != "report.md"
)


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of the code blocks of a page."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """The page without code."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "code", text)


def anchors(page: Path) -> set[str]:
    """What a heading is called in a link, on GitHub and in MyST alike."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# --- links -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = unquote(target).partition("#")
        found = (page.parent / name) if name else page
        assert found.exists(), f"{page.name} links to {target}, which is not there"
        if anchor and found.suffix == ".md":
            assert anchor in anchors(found), f"{page.name} links to {target}, but there is no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_that_a_page_names_are_there(page):
    text = re.sub(r"^```python\n# src/.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    named = re.findall(r"(?<![\w/.-])(?:docs|examples|src|studies|tests)/[\w./-]*\w", text)
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_example_is_in_the_list_of_examples():
    folder = ROOT / "examples"
    listed = set(re.findall(r"\]\(([^)]+)\)", (folder / "README.md").read_text(encoding="utf-8")))
    examples = (path for suffix in ("yaml", "py", "csv") for path in folder.rglob(f"*.{suffix}"))
    assert {str(path.relative_to(folder)) for path in examples} <= listed


def test_the_readings_of_this_file_find_what_they_should(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A title, twice\n[a](b.md) `[c](d.md)`\n```python\nx = [e](f)\n```\n", encoding="utf-8")
    assert blocks(page) == [("python", "x = [e](f)\n")]
    assert anchors(page) == {"a-title-twice"}
    assert "b.md" in prose(page) and "d.md" not in prose(page) and "[e]" not in prose(page)
    with pytest.raises(AssertionError, match=r"b\.md"):
        test_relative_links_resolve(page)


def test_committed_results_name_nothing_of_the_machine_that_made_them():
    listed = subprocess.run(["git", "ls-files", "studies"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode or not listed.stdout:
        pytest.skip("not a git checkout")
    paths = [ROOT / line for line in listed.stdout.splitlines()]
    assert [path.name for path in paths if path.suffix == ".lock"] == []
    of_a_machine = re.compile(rb"(?<![\w.])/(work|root|tmp|home|Users|mnt)/\w")
    assert [str(path) for path in paths if of_a_machine.search(path.read_bytes())] == []


def test_every_paper_that_is_named_is_in_the_index():
    number = re.compile(r"\b\d{4}\.\d{5}\b")
    known = set(number.findall((DOCS / "reference" / "paper_index.md").read_text(encoding="utf-8")))
    for path in [*PAGES, *(ROOT / "src").rglob("*.py")]:
        missing = set(number.findall(path.read_text(encoding="utf-8"))) - known
        assert not missing, (
            f"{path.relative_to(ROOT)} names {sorted(missing)}; add a row to docs/reference/paper_index.md"
        )


def test_versions_agree():
    import bayeslora

    assert f"\nversion: {bayeslora.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## {bayeslora.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


# --- code ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny causal model with its tokenizer, in the place of SmolLM2."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = byte_level_tokenizer()
    tiny_llama(vocab_size=len(tokenizer), max_position_embeddings=4096).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_quickstart_runs_from_top_to_bottom(base, tmp_path, monkeypatch, capsys):
    """As it is written, but with a tiny model and few items."""
    small = {"model.name": base, "task.train_examples": 8, "task.dev_examples": 12, "task.test_examples": 6}
    smaller = {"train.epochs": 1, "num_samples": 3, "model.device": "cpu"}
    shrunk = [part for name, value in {**small, **smaller}.items() for part in (f"--{name}", str(value))]
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    commands, sections = [], blocks(QUICKSTART)
    for language, text in sections:
        if language == "json" and '"question"' in text:
            (tmp_path / "items.jsonl").write_text(text, encoding="utf-8")
        elif language == "console":
            for line in text.replace("\\\n", "").splitlines():
                program, *arguments = shlex.split(line, comments=True)
                if program == "bayeslora":
                    main([*arguments, *(shrunk if arguments[0] == "train" else [])])
                    commands.append(arguments[0])
        elif language == "python":
            tiny = text.replace('"offline:smollm2"', repr(str(base))).replace("[28, 29]", "[2, 3]")
            exec(tiny, names)
    assert commands == ["train", "evaluate", "predict"]
    assert {path.name for path in (tmp_path / "runs" / "first").iterdir()} >= {
        "adapter",
        "config.yaml",
        "metrics.json",
        "predictions.jsonl",
        "reliability.png",
    }
    record = json.loads((tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()[0])
    text = QUICKSTART.read_text(encoding="utf-8")
    assert not [name for name in record if name != "id" and f"`{name}`" not in text]
    assert names["prediction"].probabilities.shape == (4, 4)
    assert (tmp_path / "adapters" / "mine" / "adapter_model.safetensors").is_file()
    assert "Which gas do plants take in?" in capsys.readouterr().out


def test_what_the_quickstart_shows_is_what_was_measured():
    measured = json.loads((STUDIES / "methods" / "demo" / "quickstart.json").read_text(encoding="utf-8"))
    head, row = re.search(r"^\| (accuracy .*) \|\n\|[-|]+\n\| (.*) \|$", prose(QUICKSTART), re.MULTILINE).groups()
    for name, value in zip(head.split(" | "), row.split(" | "), strict=True):
        assert float(value) == pytest.approx(measured[name], abs=5e-4), name


# --- the notebook ----------------------------------------------------------------------------------------------------


def code_cells() -> list[dict]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_the_notebook_was_executed_from_top_to_bottom_without_errors():
    cells = code_cells()
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    tables = [output for output in outputs if "text/markdown" in output.get("data", {})]
    assert len(pictures) >= 2 and len(tables) >= 4
    assert NOTEBOOK.stat().st_size < 2**20


def test_the_code_of_the_notebook_runs_at_a_tiny_size(base, monkeypatch, capsys):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    names: dict = {}
    for cell in code_cells():
        code = "".join(cell["source"])
        if "parameters" in cell["metadata"].get("tags", []):
            sizes = "TRAIN, DEV, TEST, OUTSIDE = 6, 12, 6, 4\nEPOCHS, LAST_LAYERS, SAMPLES = 2, 2, 3"
            code = f"MODEL = {str(base)!r}\n{sizes}"
        exec(code, names)
    assert torch.equal(names["ours"], names["theirs"]) or (names["ours"] - names["theirs"]).abs().max() < 1e-4
    assert "largest difference" in capsys.readouterr().out

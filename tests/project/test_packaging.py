"""The distributions: what is in them, built by the build backend itself in this environment."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src"

pytest.importorskip("hatchling", reason="the build backend is not installed; pip install hatchling")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder


def sources() -> set[str]:
    files = (path for path in SOURCES.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(SOURCES).as_posix() for path in files}


def test_the_wheel_holds_the_packages_with_their_templates_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith("/METADATA"))).decode()
        scripts = archive.read(next(name for name in names if name.endswith("/entry_points.txt"))).decode()
    assert {name for name in names if ".dist-info/" not in name} == sources()
    assert {"bayeslora/py.typed", "bayeslora/runs/templates/model_card.md.j2"} <= names
    assert "bayeslora = bayeslora_cli.main:main" in scripts
    assert "Requires-Dist: peft>=" in metadata and "License-Expression: Apache-2.0" in metadata


def test_the_sdist_holds_what_a_build_needs_and_is_small(built):
    (sdist,) = built.glob("*.tar.gz")
    assert sdist.stat().st_size < 2 * 2**20
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"src/{name}" for name in sources()} <= names
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"} <= names
    assert not [name for name in names if name.startswith(("studies", "tests", "docs", "examples"))]

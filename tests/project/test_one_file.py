"""A new thing of each kind is one new file: the files of CONTRIBUTING.md, put into their folders and used."""

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from test_cli import data, tiny_base  # noqa: F401

from bayeslora.methods import METHODS
from bayeslora.options.registry import Registry, did_you_mean
from bayeslora_cli.main import main

ROOT = Path(__file__).parents[2]
FILES = dict(
    re.findall(r"```python\n# src/(\S+)\.py\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), flags=re.DOTALL)
)
"""By their paths below src, without the ending."""


@pytest.fixture(scope="module")
def added(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The files in a folder of their own that each package has as a part; no registry has them afterwards."""
    root, modules, paths = tmp_path_factory.mktemp("added"), [], []
    for path, source in FILES.items():
        file = root / f"{path}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source, encoding="utf-8")
        modules.append(path.replace("/", "."))
        package = importlib.import_module(modules[-1].rpartition(".")[0])
        if str(file.parent) not in package.__path__:
            package.__path__.append(str(file.parent))
            paths.append((package.__path__, str(file.parent)))
    METHODS.names()  # Read when bayeslora is imported, which was before.
    yield modules
    for path, folder in paths:
        path.remove(folder)
    for name in modules:
        # Classes live on in __subclasses__: without a name they are in no registry. Their modules stay too, for
        # jsonargparse imports every subclass by its path and warns in later tests of one that is gone.
        kinds = vars(sys.modules[name]).values() if name in sys.modules else ()
        for kind in [kind for kind in kinds if isinstance(kind, type) and kind.__module__ == name]:
            kind.name = ""


def run_config(base: Path, **changed: object) -> dict:
    return {
        "model": {"name": str(base), "device": "cpu"},
        "task": {"name": "parity", "scoring": "bare"},
        "method": {"class_path": "BayesianLora", "init_args": {"r": 2, "last_layers": 1, "posterior": "narrow"}},
        "train": {"max_steps": 1, "batch_size": 2, "optimizer": "signs", "cache_trunk": False},
        "num_samples": 2,
    } | changed


def written(path: Path, content: dict) -> str:
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return str(path)


def test_posterior_task_scoring_optimizer_format_and_command(added, tiny_base, tmp_path, capsys):  # noqa: F811
    config, run = written(tmp_path / "run.yaml", run_config(tiny_base)), str(tmp_path / "run")
    main(["train", "--config", config, "--output_dir", run])
    main(["evaluate", run])
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text("utf-8"))
    assert saved["task"]["scoring"] == "bare" and saved["train"]["optimizer"] == "signs"
    assert saved["method"]["init_args"]["posterior"] == "narrow"
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text("utf-8"))
    assert metrics["num_examples"] == 10 and metrics["top_two"] == 1.0
    main(["export", run, "--format", "card", "--output_dir", str(tmp_path / "card")])
    assert json.loads((tmp_path / "card" / "export.json").read_text("utf-8"))["format"] == "card"
    capsys.readouterr()
    main(["name", run])
    assert capsys.readouterr().out == "bayesian_lora\n"


def test_method_and_executor(added, tiny_base, tmp_path):  # noqa: F811
    method = {"class_path": "RankOne", "init_args": {"r": 4, "last_layers": 1}}
    config = run_config(tiny_base, rows={"one": {"method": method}}, tasks={"parity": {"name": "parity"}})
    config |= {"learning_rates": [0.01], "seeds": [0], "cost_examples": 2}
    config = {name: value for name, value in config.items() if name not in ("task", "method")}
    path = written(tmp_path / "compare.yaml", config)
    main(["compare", "--config", path, "--output_dir", str(tmp_path / "out"), "--executor", "last_first"])
    cells = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text("utf-8").splitlines()]
    assert "in the top two" in (tmp_path / "out" / "report.md").read_text("utf-8").replace("\N{NO-BREAK SPACE}", " ")
    ranks = json.loads(next((tmp_path / "out" / "runs").glob("parity-one-*/**/adapter_config.json")).read_text("utf-8"))
    assert ranks["r"] == 1 and any(cell.get("method") == "one" for cell in cells)


def test_every_kind_has_a_recipe():
    assert {path.rpartition("/")[0].replace("bayeslora/", "") for path in FILES} == {
        *("methods", "posteriors", "tasks", "metrics", "scoring", "training/optimizers", "deploy/export"),
        *("experiments/comparison/executors", "bayeslora_cli/commands"),
    }


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--task.scoring", "leter", "Did you mean 'letter'?"),
        ("--train.optimizer", "lora_rit", "Did you mean 'lora_rite'?"),
        ("--method.posterior", "ful", "Did you mean 'full'?"),
    ],
)
def test_what_there_is_not_is_refused_with_the_nearest_name(option, value, expected, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["train", option, value, "--output_dir", str(tmp_path / "run")])
    assert expected in capsys.readouterr().err


class Animal:
    name = ""


class Cat(Animal):
    name = "cat"


class Lion(Cat):
    name = "lion"


class Kitten(Cat):
    pass


def test_derived_kinds_are_found_and_nameless_ones_are_not():
    animals = Registry(Animal, "bayeslora.system")
    assert animals.names() == ["cat", "lion"] and animals.get("lion") is Lion
    assert Registry(Animal, "bayeslora.system", outside=False).names() == []
    with pytest.raises(ValueError, match=r"animal must be one of \['cat', 'lion'\], got 'loin'. Did you mean 'lion'"):
        animals.get("loin")


def test_two_kinds_of_one_name_are_an_error_and_a_kind_defined_again_is_not():
    kinds = Registry(Kitten, "bayeslora.system")

    def define(title: str) -> type:
        return type(title, (Kitten,), {"name": "tom", "__qualname__": title})

    first, again = define("Tom"), define("Tom")
    assert kinds.get("tom") is again is not first
    other = define("Thomas")
    with pytest.raises(ValueError, match="are both called 'tom'"):
        kinds.names()
    other.name = ""


def test_hints_ignore_case_and_are_silent_where_nothing_is_near():
    assert did_you_mean("ARC", ["arc", "art"], number=2) == " Did you mean 'arc' or 'art'?"
    assert did_you_mean("xyz", ["arc"]) == ""

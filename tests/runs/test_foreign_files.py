"""Files of somebody else decide nothing about code: whatever a config, a run, a results file or a Hub repository names,
a module with markers is neither imported nor built from.
"""

import json
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub.utils import filter_repo_objects

from bayeslora.experiments.comparison.growth import grown
from bayeslora.methods import Lora, Method
from bayeslora.options.classes import known, permit
from bayeslora.options.parsing import config_parser
from bayeslora.options.plain import check_plain
from bayeslora.planning.config_files import parse_run_or_comparison
from bayeslora.runs import load_run
from bayeslora.runs.config import RunConfig
from bayeslora.runs.config_files import parse_config
from bayeslora.system import locating
from bayeslora_cli.main import main

MODULE = "foreign_markers"
SOURCE = """
from bayeslora.methods import Lora
from bayeslora.tasks import Task

class Marker:
    def __init__(self, *arguments, **options):
        raise SystemExit("built")

class MarkedMethod(Lora):
    pass

class MarkedTask(Task):
    def parse(self, row, index):
        raise SystemExit("parsed")
"""
SPEC = {"class_path": f"{MODULE}.Marker", "init_args": {"x": 1}}
METHOD = {"class_path": f"{MODULE}.MarkedMethod"}
LORA = {"class_path": "Lora"}
OUT = ["--output_dir", "out"]

IN_A_RUN = {
    "argument": {"train": {"arguments": {"run_name": SPEC}}},
    "arguments": {"train": {"arguments": SPEC}},
    "in a list": {"train": {"arguments": {"report_to": [SPEC]}}},
    "as text": {"train": {"arguments": {"run_name": yaml.safe_dump(SPEC)}}},
    "dotted": {"train.arguments": {"run_name": SPEC}},
    "optimizer": {"train": {"optimizer_options": {"pair_lr": SPEC}}},
    "posterior": {"method": {"class_path": "BayesianLora", "init_args": {"posterior_options": {"members": SPEC}}}},
    "method": {"method": METHOD},
    "method as text": {"method": METHOD["class_path"]},
    "method as YAML": {"method": yaml.safe_dump(METHOD)},
    "dotted method": {"method.class_path": METHOD["class_path"]},
    "other class": {"method": SPEC},
    "method's option": {"method": {"class_path": "Lora", "init_args": {"lora_alpha": SPEC}}},
    "method's further option": {"method": {"class_path": "Lora", "dict_kwargs": {"more": SPEC}}},
    "group": {"model": SPEC},
    "group as text": {"model": SPEC["class_path"]},
    "option": {"seed": SPEC},
    "unknown": {"whatever": SPEC},
}
IN_A_COMPARISON = {
    "row": {"rows": {"x": {"method": METHOD}}},
    "row's training": {"rows": {"x": {"method": LORA, "train": {"arguments": SPEC}}}},
    "row's text": {"rows": {"x": SPEC["class_path"]}},
    "rows as text": {"rows": yaml.safe_dump({"x": {"method": METHOD}})},
    "row of a class": {"rows": {"x": SPEC}},
    "task": {"tasks": {"x": SPEC}},
    "task as text": {"tasks": {"x": SPEC["class_path"]}},
}
READING_A_RUN = {
    "evaluate": [],
    "predict": ["--input", "items.jsonl", "--output", "out.jsonl"],
    "serve": [],
    "export": ["--output_dir", "out"],
    "diagnose": [],
    "generate": ["--prompt", "Hello"],
    "push": ["--repo_id", "anna/plants", "--output_dir", "out"],
    "lm-eval": ["--tasks", "arc_easy"],
}


@pytest.fixture(autouse=True)
def markers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module can be imported."""
    (tmp_path / f"{MODULE}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def trusted(tmp_path: Path) -> str:
    """Another such module, which the test imports: what is imported once stays known."""
    name = f"trusted_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    return name


def is_imported() -> bool:
    return MODULE in sys.modules


def write(path: Path, content: object) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def write_run(folder: Path, content: object) -> Path:
    (folder / "adapter").mkdir(parents=True)
    write(folder / "config.yaml", content)
    (folder / "metrics.json").write_text("{}")
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("content", IN_A_RUN.values(), ids=IN_A_RUN)
def test_the_config_of_a_run_names_no_class(content: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=next(iter(content)).partition(".")[0]):
        parse_config(write(tmp_path / "config.yaml", content))
    with pytest.raises(ValueError, match=next(iter(content)).partition(".")[0]):
        load_run(write_run(tmp_path / "run", content))
    assert not is_imported()


@pytest.mark.parametrize("content", IN_A_COMPARISON.values(), ids=IN_A_COMPARISON)
def test_the_config_of_a_comparison_names_no_class(content: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=next(iter(content))):
        parse_run_or_comparison(write(tmp_path / "config.yaml", content))
    assert not is_imported()


@pytest.mark.parametrize("command", READING_A_RUN)
def test_commands_that_read_a_run(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "items.jsonl").write_text('{"question": "?", "choices": ["a", "b"]}\n')
    for number, name in enumerate(("argument", "method")):
        run = write_run(tmp_path / str(number), IN_A_RUN[name])
        with pytest.raises(SystemExit) as exit:
            main([command, str(run), *READING_A_RUN[command]])
        assert exit.value.code == 1 and not is_imported()
    said = capsys.readouterr().err
    assert "train.arguments.run_name must be plain data" in said
    assert f"--allow_method {METHOD['class_path']}" in said


@pytest.mark.parametrize("command", ["train", "chain", "continual", "compare", "sweep", "rank-study", "plan"])
def test_commands_that_read_a_config(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {"compare": {"x": {"method": METHOD}}, "continual": {"x": METHOD}}
    rows["sweep"] = rows["compare"]
    foreign = {"rows": rows[command]} if command in rows else {"method": METHOD}
    for content in (foreign, IN_A_RUN["argument"]):
        path = str(write(tmp_path / "config.yaml", content))
        with pytest.raises(SystemExit):
            main(["plan", path, "--gpu_memory", "80GB"] if command == "plan" else [command, "--config", path, *OUT])
        assert not is_imported()
    said = capsys.readouterr().err
    assert "no method of this installation" in said and "train.arguments.run_name must be plain data" in said
    # As the text of a config instead of its file.
    if command != "plan":
        with pytest.raises(SystemExit):
            main([command, "--config", json.dumps(foreign), *OUT])
        assert not is_imported()


def test_a_group_of_options_in_a_file_of_its_own(tmp_path: Path) -> None:
    parser = config_parser(RunConfig)
    path = write(tmp_path / "train.yaml", {"arguments": {"run_name": SPEC}})
    parsed = parser.instantiate_classes(parser.parse_args(["--train", str(path)]))
    assert parsed.train.arguments == {"run_name": SPEC} and not is_imported()


def test_open_options_of_the_command_line_are_plain_data() -> None:
    parser = config_parser(RunConfig)
    options = ["--train.arguments.a=true", "--train.arguments.b", "1e-3", "--train.arguments.c=[1, x]"]
    options += ["--train.arguments.d", "2020-01-01", "--train.arguments.e=text"]
    found = parser.instantiate_classes(parser.parse_args(options)).train.arguments
    assert found == {"a": True, "b": 0.001, "c": [1, "x"], "d": "2020-01-01", "e": "text"}
    described = json.dumps({"run_name": SPEC})
    found = parser.instantiate_classes(parser.parse_args(["--train.arguments", described])).train.arguments
    assert found == {"run_name": SPEC} and not is_imported()


def test_results_files(tmp_path: Path) -> None:
    config = {"rows": {"x": {"method": METHOD}}}
    with pytest.raises(ValueError, match=f"{MODULE}.MarkedMethod"):
        grown(config, {"rows": {"x": {"method": LORA}}}, {}, tmp_path / "results.jsonl")
    header = {
        "kind": "header",
        "format_version": 1,
        "config": config,
        "device": "cpu",
        "bayeslora": "0",
        "versions": {},
    }
    (tmp_path / "results.jsonl").write_text(json.dumps({**header, "created": "now"}) + "\n")
    main(["report", str(tmp_path)])
    assert not is_imported()


@pytest.mark.parametrize("option", ["--allow_task", "--task.name"])
def test_a_task_is_imported_only_where_its_user_names_it(
    option: str, trusted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = f"{trusted}.MarkedTask"
    config = str(write(tmp_path / "config.yaml", {"task": {"name": task, "source": "offline"}}))
    with pytest.raises(SystemExit):
        main(["train", "--config", config, "--output_dir", "out"])
    assert f"--allow_task {task}" in capsys.readouterr().err and trusted not in sys.modules
    with pytest.raises(SystemExit):
        main(["train", "--config", config, "--output_dir", "out", option, task])
    assert "has no offline data" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--allow_method", "--method"])
def test_a_method_is_imported_only_where_its_user_names_it(
    option: str, trusted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method = f"{trusted}.MarkedMethod"
    config = write(tmp_path / "config.yaml", {"method": {"class_path": method}, "task": {"name": "nowhere"}})
    with pytest.raises(SystemExit):
        main(["train", "--config", str(config), "--output_dir", "out"])
    assert f"--allow_method {method}" in capsys.readouterr().err and trusted not in sys.modules
    with pytest.raises(SystemExit):
        main(["train", "--config", str(config), option, method, "--output_dir", "out"])
    assert "there is no task 'nowhere'" in capsys.readouterr().err
    assert type(parse_config(config).method).__name__ == "MarkedMethod"


def test_load_run_is_told_which_method_a_run_may_name(trusted: str, tmp_path: Path) -> None:
    method = f"{trusted}.MarkedMethod"
    run = write_run(tmp_path / "run", {"method": {"class_path": method}, "model": {"name": "./gone"}})
    with pytest.raises(ValueError, match="allow_method"):
        load_run(run, allow_method="bayeslora.methods.Lora")
    assert trusted not in sys.modules
    with pytest.raises(FileNotFoundError, match=r"\./gone"):
        load_run(run, allow_method=method)


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("Marked", ImportError, "expected a dotted path"),
        ("no_such_module.Mine", ImportError, "cannot be imported"),
        ("json.Gone", ImportError, "cannot be imported"),
        ("json.JSONEncoder", TypeError, "derived from Method"),
    ],
)
def test_what_cannot_be_allowed(
    path: str, error: type[Exception], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(error, match=message):
        permit(Method, path)
    with pytest.raises(SystemExit) as exit:
        main(["evaluate", "run", "--allow_method", path])
    assert exit.value.code == 2 and message in capsys.readouterr().err


def test_known_classes() -> None:
    for path in ("Lora", "bayeslora.methods.Lora", "bayeslora.methods.lora.Lora"):
        assert known(Method, path) is Lora
    for path in ("lora", "bayeslora.methods.lora", "bayeslora.methods.lora.Method.x", "json.JSONEncoder", ""):
        assert known(Method, path) is None


def test_only_data_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["adapter_config.json", "adapter_model.safetensors", "config.yaml", "metrics.json"]
    others = ["adapter_model.bin", "adapter_code.py", "training_args.bin", "optimizer.pt", "adapter_x/config.yaml"]
    asked: list[str] = []

    def download(repository: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.extend(filter_repo_objects([*others, *wanted], allow_patterns=allow_patterns))
        return str(write_run(tmp_path / "snapshot", {"method": METHOD}))

    monkeypatch.setattr(locating, "snapshot_download", download)
    with pytest.raises(ValueError, match="--allow_method"):
        load_run("anna/plants")
    assert asked == wanted and not is_imported()


def test_what_is_plain() -> None:
    check_plain({"a": [1, 2.5, "x", None, True, ("y",)], "b": {}}, "train.arguments")
    for value, where in (({"a": object()}, r"\.a"), ({"a": [Lora]}, r"\.a\[0\]"), ({1: 2}, ""), (Path("x"), "")):
        with pytest.raises(TypeError, match=f"^train.arguments{where}"):
            check_plain(value, "train.arguments")

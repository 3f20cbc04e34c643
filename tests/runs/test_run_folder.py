"""Run folders: nothing is replaced unasked, one writer at a time, and a run changes whole or not at all."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_cli import config, data, fails, items, tiny_base, write_items  # noqa: F401

from bayeslora.runs import load_run
from bayeslora.runs.beginning import note_beginning
from bayeslora.runs.config import RunConfig
from bayeslora.system.folders import only_replacer, only_writer, recover_parts
from bayeslora_cli.main import main
from conftest import bayesian
from other_processes import run_copy, run_python

HOLD = """
import sys, time
from bayeslora.system.folders import only_writer
with only_writer(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def train(config: Path, run: Path, *options: object) -> None:  # noqa: F811
    main(["train", "--config", str(config), "--output_dir", str(run), *map(str, options)])


def contents(folder: Path, skip: tuple[str, ...] = (".lock",)) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.name not in skip)
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def trained(tiny_base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A finished and evaluated run, with its config beside it."""
    folder = tmp_path_factory.mktemp("trained")
    content: dict[str, Any] = {
        "model": {"name": str(tiny_base), "device": "cpu"},
        "task": {"name": str(data)},
        "method": {"class_path": "BayesianLora", "init_args": {"r": 2, "last_layers": 2}},
        "train": {"max_steps": 2, "batch_size": 4, "logging_steps": 1},
        "num_samples": 2,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    train(folder / "config.yaml", folder / "run")
    main(["evaluate", str(folder / "run")])
    return folder


def test_a_training_of_one_step_learns(trained: Path, tmp_path: Path) -> None:
    train(trained / "config.yaml", tmp_path / "run", "--train.max_steps", 1, "--method", "Lora")
    learned = dict(load_run(tmp_path / "run").model.named_parameters())
    assert all(value.any() for name, value in learned.items() if "lora_B" in name)


@pytest.fixture
def finished(trained: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The config, and a run folder of its own."""
    shutil.copytree(trained / "run", tmp_path / "run")
    return trained / "config.yaml", tmp_path / "run"


# --- nothing is replaced unasked -------------------------------------------------------------------------------------


def test_a_run_is_replaced_only_when_asked(finished, capsys):
    config, run = finished  # noqa: F811
    before = contents(run)
    arguments = ("train", "--config", config, "--output_dir", run, "--seed", 1)
    said = fails(capsys, *arguments)
    assert "finished run" in said and "--resume" in said and "--overwrite" in said
    assert contents(run) == before
    assert "one of them" in fails(capsys, *arguments, "--resume", "true", "--overwrite", "true")
    train(config, run, "--seed", 1, "--overwrite", "true")
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["seed"] == 1 and metrics["split"] == "dev"
    # What was measured of the old run is gone with it, and its checkpoints too.
    assert not (run / "predictions.jsonl").exists() and not (run / "reliability.png").exists()
    assert not (run / "checkpoints.previous").exists()


def test_checkpoints_of_a_run_that_has_not_ended_are_left_alone(finished, capsys):
    config, run = finished  # noqa: F811
    for name in ("adapter", "metrics.json", "config.yaml", "predictions.jsonl"):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "has not ended" in fails(capsys, "train", "--config", config, "--output_dir", run)
    train(config, run, "--resume", "true")
    assert json.loads((run / "metrics.json").read_text())["seed"] == 0


def test_an_evaluation_of_something_else_is_left_alone(finished, tmp_path, capsys):
    _, run = finished
    before = contents(run)
    assert "another evaluation (split 'test')" in fails(capsys, "evaluate", run, "--split", "dev")
    files = []
    for name, offset in (("a", 0), ("b", 50)):
        (tmp_path / name).mkdir()
        files.append(write_items(tmp_path / name / "test.jsonl", items(60, offset)))
    main(["evaluate", str(run), "--task", str(files[0]), "--examples", "2", "--num_samples", "0"])
    again = ["evaluate", str(run), "--task", str(files[1]), "--examples", "2", "--num_samples", "0"]
    assert "another evaluation" in fails(capsys, *again)
    main([*again, "--overwrite", "true"])
    metrics = json.loads((run / "evaluation" / "test" / "metrics.json").read_text())
    assert metrics["task"] == str(files[1])
    shutil.rmtree(run / "evaluation")
    assert contents(run) == before
    shutil.copytree(run, tmp_path / "other")
    assert "another run" in fails(capsys, "evaluate", run, "--output_dir", tmp_path / "other", "--overwrite", "true")


def test_files_are_left_alone(finished, tmp_path, capsys):
    _, run = finished
    source, output = write_items(tmp_path / "in.jsonl", items(2)), tmp_path / "out.jsonl"
    arguments = ["predict", str(run), "--input", str(source), "--output"]
    output.write_text("mine")
    assert "is there already" in fails(capsys, *arguments, output)
    assert "input itself" in fails(capsys, *arguments, source, "--overwrite", "true")
    assert output.read_text() == "mine" and len(source.read_text().splitlines()) == 2
    main([*arguments, str(output), "--overwrite", "true"])
    assert len(output.read_text().splitlines()) == 2
    for command in (["generate", run, "--prompt", "a"], ["lm-eval", run, "--tasks", "arc_easy"]):
        assert "is there already" in fails(capsys, *command, "--output", output)
    (run / "diagnosis").mkdir()
    (run / "diagnosis" / "diagnosis.json").touch()
    assert "is there already" in fails(capsys, "diagnose", run)


# --- one writer ------------------------------------------------------------------------------------------------------


def test_a_second_writer_says_so_and_stops(finished, tmp_path, capsys):
    config, run = finished  # noqa: F811
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        for command in (
            ["train", "--config", config, "--output_dir", run, "--resume", "true"],
            ["train", "--config", config, "--output_dir", run, "--overwrite", "true"],
            ["evaluate", run],
            ["chain", "--config", config, "--output_dir", run],
        ):
            assert "another process is writing" in fails(capsys, *command), command
        # Of several processes of one run the main one has the lock.
        os.environ |= {"WORLD_SIZE": "2", "RANK": "1"}
        with only_writer(run):
            pass
    finally:
        os.environ.pop("WORLD_SIZE", None), os.environ.pop("RANK", None)
        holder.kill()
        holder.wait()
    with only_writer(run):
        pass


def test_what_is_replaced_whole_has_one_writer_too(finished, tmp_path, capsys):
    _, run = finished
    records, model = tmp_path / "records.jsonl", tmp_path / "model"
    questions = {"q": {"type": "noul", "instructions": "Is it red?"}}
    records.write_text(json.dumps({"state": "red", "questions": questions, "labels": {"q": True}}) + "\n")
    model.mkdir()
    (model / "decision.json").write_text("{}")
    for target, command in (
        (tmp_path / "export", ["export", run, "--output_dir", tmp_path / "export"]),
        (tmp_path / "hub", ["push", run, "--repo_id", "a/b", "--output_dir", tmp_path / "hub"]),
        (tmp_path / "out.jsonl", ["predict", run, "--input", records, "--output", tmp_path / "out.jsonl"]),
        (tmp_path / "texts", ["generate", run, "--prompt", "a", "--output", tmp_path / "texts"]),
        (tmp_path / "heads", ["train", "--task.name", records, "--output_dir", tmp_path / "heads"]),
        (model, ["calibrate", model, "--data", records]),
    ):
        with only_replacer(target):
            assert f"another process is writing to {target}" in fails(capsys, *command), command
    with only_replacer(run / "diagnosis"):
        assert "another process is writing" in fails(capsys, "diagnose", run)
    assert not list(tmp_path.glob(".*"))


def test_what_killed_writers_left_beside_is_swept(tmp_path: Path) -> None:
    target = tmp_path / "export"
    (tmp_path / "export.previous").mkdir()
    (tmp_path / ".export.0a1b2c3d").mkdir()
    (tmp_path / ".exported.0a1b2c3d").mkdir()
    with only_replacer(target):
        assert sorted(os.listdir(tmp_path)) == [".export.lock", ".exported.0a1b2c3d", "export"]
    assert sorted(os.listdir(tmp_path)) == [".exported.0a1b2c3d", "export"]


# --- all or none -----------------------------------------------------------------------------------------------------

KILLED = """
import os, sys
from pathlib import Path
from bayeslora.system import files as saving
from bayeslora.system import folders

def parts(value):
    with folders.only_writer(root / "run"), folders.replaced_together(root / "run", ("a", "b", "c", "d")) as aside:
        (aside / "a").mkdir()
        for name in ("a/x", "b", *(("c",) if value == "old" else ("d",))):
            (aside / name).write_text(value)

root, calls = Path(sys.argv[1]), [int(sys.argv[2])]
parts("old")

def counted(function):
    def wrapped(*arguments, **options):
        calls[0] -= 1
        if calls[0] < 0:
            os._exit(9)
        return function(*arguments, **options)
    return wrapped

for owner, names in ((os, ("replace", "rename")), (folders.shutil, ("rmtree",)), (Path, ("unlink", "mkdir"))):
    for name in names:
        setattr(owner, name, counted(getattr(owner, name)))
parts("new")
"""


def test_a_kill_between_any_two_steps_leaves_one_whole_run(tmp_path: Path) -> None:
    old, new = ({"a/x": value, "b": value, last: value} for value, last in (("old", "c"), ("new", "d")))
    script = "import os, sys\nfor k in range(40):\n    pid = os.fork()\n    if pid == 0:\n        "
    script += "sys.argv = ['', sys.argv[1] + f'/{k}', str(k)]\n        exec(KILLED)\n        os._exit(0)\n    "
    script += "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    done = run_copy(f"KILLED = {KILLED!r}\nimport bayeslora.system.folders\n{script}", tmp_path, str(tmp_path))
    codes = done.stdout.split()
    assert set(codes) == {"0", "9"} and codes.index("0") > 8, done.stderr
    seen = []
    for k in range(codes.index("0") + 1):
        run = tmp_path / str(k) / "run"
        recover_parts(run)
        with only_writer(run):
            pass
        found = {name: content.decode() for name, content in contents(run).items()}
        assert found in (old, new), k
        assert sorted(os.listdir(run)) == sorted([".lock", "a", "b", "c" if found == old else "d"])
        seen.append(found == new)
    assert seen == sorted(seen) and 2 < sum(seen) < len(seen) - 2


@pytest.mark.parametrize("moment", ["write_config", "write_model_card", "save_state", "write_json"])
def test_a_failure_at_any_write_leaves_the_older_run(moment, finished, monkeypatch, capsys):
    config, run = finished  # noqa: F811
    before = {name: value for name, value in contents(run).items() if not name.startswith("checkpoints")}

    def fail(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(f"bayeslora.runs.writing.{moment}", fail)
    arguments = ("train", "--config", config, "--output_dir", run, "--overwrite", "true", "--seed", 1)
    assert "No space left" in fails(capsys, *arguments)
    after = {name: value for name, value in contents(run).items() if not name.startswith("checkpoints")}
    assert after == before and not (run / ".new").exists()
    load_run(run)


@pytest.mark.parametrize(("option", "value"), [("num_samples", -1), ("batch_size", 0)])
def test_a_config_that_would_fail_after_the_training_fails_before(option, value, finished, capsys):
    config, run = finished  # noqa: F811
    before = contents(run)
    arguments = ("train", "--config", config, "--output_dir", run, "--overwrite", "true", f"--{option}", value)
    assert option in fails(capsys, *arguments)
    assert contents(run) == before


def test_what_kills_left_is_swept_and_nothing_else(finished):
    config, run = finished  # noqa: F811
    for name in (".metrics.json.0a1b2c3d", ".results.jsonl.k3_x9q0z", ".mine", ".env.settings", "notes.previous"):
        (run / name).touch()
    for name in (".adapter.0a1b2c3d", "adapter.previous", ".new"):
        (run / name).mkdir()
    inside = [
        run / "checkpoints" / name for name in (".beginning.json.0a1b2c3d", "checkpoint-2/.log_sums.json.0a1b2c3d")
    ]
    for path in inside:
        path.touch()
    before = set(os.listdir(run))
    train(config, run, "--resume", "true")
    gone = {".metrics.json.0a1b2c3d", ".results.jsonl.k3_x9q0z", ".adapter.0a1b2c3d", "adapter.previous", ".new"}
    assert before - set(os.listdir(run)) - {"predictions.jsonl", "reliability.png"} == gone
    assert not any(path.exists() for path in inside)


# --- resume ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--train.learning_rate", "0.5"], "train.learning_rate is 0.001 there and 0.5 here"),
        (["--seed", "7"], "seed is 0 there and 7 here"),
        (["--train.batch_size", "2"], "train.batch_size is 4 there and 2 here"),
        (["--method.r", "4"], "method.init_args.r is 2 there and 4 here"),
        (["--task.train_examples", "8"], "the training items are others"),
        (["--train.arguments", "{adam_beta1: 0.5}"], "adam_beta1"),
        (["--train.max_steps", "1"], "not with fewer"),
    ],
)
def test_a_run_of_another_config_is_not_resumed(options, said, finished, capsys):
    config, run = finished  # noqa: F811
    before = contents(run)
    text = fails(capsys, "train", "--config", config, "--output_dir", run, "--resume", "true", *options)
    assert said in text
    assert contents(run) == before


def test_what_may_change_when_a_run_is_resumed(finished, data, tmp_path):  # noqa: F811
    config, run = finished  # noqa: F811
    moved = shutil.copytree(data, tmp_path / "moved")
    options = ["--train.max_steps", 3, "--train.logging_steps", 2, "--train.save_steps", 1, "--num_samples", 3]
    options += ["--task.name", moved, "--train.arguments", "{logging_first_step: true}", "--batch_size", 2]
    train(config, run, "--resume", "true", *options)
    assert [entry["step"] for entry in json.loads((run / "metrics.json").read_text())["history"]][-1] in (2, 3)


def test_history_after_a_resume_is_that_of_a_run_that_was_never_cut(finished, tmp_path, capsys):
    config, _ = finished  # noqa: F811
    options = ["--train.max_steps", 6, "--train.save_steps", 3, "--train.logging_steps", 2]
    options += ["--train.cache_trunk", "false", "--train.gradient_accumulation_steps", 2]
    train(config, tmp_path / "straight", *options)
    shutil.copytree(tmp_path / "straight", tmp_path / "cut")
    (tmp_path / "cut" / "checkpoints" / "checkpoint-6" / "trainer_state.json").unlink()
    train(config, tmp_path / "cut", *options, "--resume", "true")
    straight, cut = (json.loads((tmp_path / n / "metrics.json").read_text())["history"] for n in ("straight", "cut"))
    assert [entry["step"] for entry in straight] == [2, 4, 6]
    assert cut == straight


# --- files -----------------------------------------------------------------------------------------------------------


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    from bayeslora.system.files import save_adapter, write_json

    for mask in (0o027, 0o002):
        before = os.umask(mask)
        try:
            save_adapter(bayesian(), tmp_path / f"{mask}")
            write_json(tmp_path / f"{mask}.json", {})
        finally:
            os.umask(before)
        assert (tmp_path / f"{mask}").stat().st_mode & 0o777 == 0o777 & ~mask
        for file in [*(tmp_path / f"{mask}").iterdir(), tmp_path / f"{mask}.json"]:
            assert file.stat().st_mode & 0o777 == 0o666 & ~mask, file


NAMES = {"target_modules": ["q_proj", "v_proj", "down_proj", "k_proj"], "exclude_modules": ["a", "b", "c"]}
ORDERS = f"print([list(set(names)) for names in {NAMES}.values()])"
SAVED = """
import sys
from peft import LoraConfig, get_peft_model
from conftest import tiny_llama
from bayeslora.system.files import save_adapter
save_adapter(get_peft_model(tiny_llama(), LoraConfig(**NAMES)), sys.argv[1])
"""


def test_the_adapters_config_has_the_same_bytes_in_every_process(tmp_path, monkeypatch, capsys):
    """Also in one where the same sets have another order."""
    script = f"NAMES = {NAMES}\n{SAVED}"
    exec(ORDERS)
    here, there = capsys.readouterr().out, ""
    for seed in range(10):
        monkeypatch.setenv("PYTHONHASHSEED", str(seed))
        there = subprocess.check_output([sys.executable, "-c", ORDERS], text=True)
        if there != here:
            break
    assert there != here
    done = run_python(script, tmp_path, str(tmp_path / "there"))
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr("sys.argv", ["", str(tmp_path / "here")])
    exec(script, {})
    found, expected = ((tmp_path / name / "adapter_config.json").read_bytes() for name in ("there", "here"))
    assert found == expected


def test_a_run_killed_before_its_first_checkpoint_costs_none_of_the_run_before(tmp_path, caplog):
    checkpoints = tmp_path / "checkpoints"
    whole = checkpoints / "checkpoint-3"
    whole.mkdir(parents=True)
    (whole / "trainer_state.json").write_text("{}")
    with caplog.at_level("INFO", "bayeslora"):
        note_beginning(RunConfig(), tmp_path, (), resume=False)
    previous = tmp_path / "checkpoints.previous"
    assert (previous / "checkpoint-3").is_dir() and "checkpoints of the run before" in caplog.text
    (checkpoints / "checkpoint-1").mkdir()
    for resume in (False, True):  # A kill, and the next start.
        caplog.clear()
        with caplog.at_level("INFO", "bayeslora"):
            note_beginning(RunConfig(), tmp_path, (), resume=resume)
        assert (previous / "checkpoint-3").is_dir() and "goes when this one has ended well" in caplog.text
        assert [path.name for path in checkpoints.iterdir()] == ["beginning.json"]

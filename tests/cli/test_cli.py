"""The command line: through the real entry point once, in process for the many ways to call it wrongly."""

import errno
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from bayeslora import __version__
from bayeslora.methods import method_classes
from bayeslora.options.parsing import config_parser, instantiate
from bayeslora.runs.config import RunConfig
from bayeslora.runs.config_files import dump_config, parse_config
from bayeslora_cli.main import main
from conftest import byte_level_tokenizer, tiny_bert, tiny_llama, wordpiece_tokenizer

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples" / "train").glob("*.yaml"))


def items(count: int, offset: int = 0) -> list[dict]:
    words = ["sunlight and water", "iron", "wood", "a star", "the moon"]
    return [
        {
            "id": f"item-{offset + n}",
            "question": f"What do plants need to grow ({offset + n})?",
            "choices": [words[(n + k) % 5] for k in range(3)],
            "label": n % 3,
        }
        for n in range(count)
    ]


def write_items(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny causal model with its tokenizer, as a local folder."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = byte_level_tokenizer()
    tiny_llama(vocab_size=len(tokenizer), max_position_embeddings=2048).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = wordpiece_tokenizer()
    tiny_bert(vocab_size=len(tokenizer), max_position_embeddings=2048, num_labels=2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_items(folder / "train.jsonl", items(12))
    write_items(folder / "dev.jsonl", items(4, 100))
    write_items(folder / "test.jsonl", items(6, 200))
    return folder


@pytest.fixture
def config(tmp_path: Path, tiny_base: Path, data: Path) -> Path:
    content = {
        "model": {"name": str(tiny_base), "device": "cpu"},
        "task": {"name": str(data)},
        "method": {"class_path": "BayesianLora", "init_args": {"r": 2, "last_layers": 2, "prior_std": 0.3}},
        "train": {"max_steps": 3, "batch_size": 4, "logging_steps": 1},
        "num_samples": 3,
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def bayeslora(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = Path(sys.executable).parent / "bayeslora"
    return subprocess.run([str(command), *map(str, arguments)], capture_output=True, text=True, timeout=240)


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a call that must fail says."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert stopped.value.code in (1, 2)
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


# --- the three commands ----------------------------------------------------------------------------------------------


def test_train_evaluate_predict_through_the_entry_point(tmp_path, config, data):
    run = tmp_path / "run"
    done = bayeslora("train", "--config", config, "--output_dir", run, "--seed", 3, "--method.r", 4)
    assert done.returncode == 0, done.stderr
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    card = (run / "adapter" / "README.md").read_text()
    assert "import bayeslora" in card and "| accuracy | nll |" in card
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert written["seed"] == 3 and written["method"]["init_args"]["r"] == 4
    trained = json.loads((run / "metrics.json").read_text())
    assert trained["split"] == "dev" and trained["num_examples"] == 4 and len(trained["history"]) == 3

    main(["evaluate", str(run)])  # In this process, as the rest: a start costs several seconds.
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["split"] == "test"
    expected = {"method": "bayesian_lora", "seed": 3, "num_examples": 6, "num_samples": 3, "task": str(data)}
    assert {name: metrics[name] for name in expected} == expected
    for name in ("accuracy", "nll", "ece", "brier", "train_seconds", "trainable_parameters"):
        assert metrics[name] >= 0
    assert (run / "reliability.png").read_bytes().startswith(b"\x89PNG")
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"item-{200 + n}" for n in range(6)]
    right = sum(row["prediction"] == row["label"] for row in rows) / 6
    assert right == pytest.approx(metrics["accuracy"])

    unlabelled = [{k: v for k, v in row.items() if k != "label"} for row in items(5, 300)]
    given, output = write_items(tmp_path / "in.jsonl", unlabelled), tmp_path / "out.jsonl"
    main(["predict", str(run), "--input", str(given), "--output", str(output), "--abstain_above", "0.0"])
    for row in map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines()):
        assert set(row) == {
            "id",
            "probabilities",
            "prediction",
            "choice",
            "confidence",
            "entropy",
            "mutual_information",
            "abstain",
        }
        assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-5)
        assert row["confidence"] == max(row["probabilities"]) and row["abstain"] is True
        assert 0 <= row["mutual_information"] <= row["entropy"]


def test_a_run_can_be_run_again_from_its_config(tmp_path, config):
    main(["train", "--config", str(config), "--output_dir", str(tmp_path / "one")])
    main(["train", "--config", str(tmp_path / "one" / "config.yaml"), "--output_dir", str(tmp_path / "two")])
    weights = [(tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]


def test_resume_goes_on_as_if_never_stopped(tmp_path, config):
    straight = ["train", "--config", str(config), "--train.max_steps", "6", "--train.save_steps", "3"]
    # A cold trunk cache sees other batches than a warm one, and so other paddings and roundings.
    straight += ["--train.cache_trunk", "false"]
    main([*straight, "--output_dir", str(tmp_path / "straight")])
    main([*straight, "--output_dir", str(tmp_path / "cut")])
    # As after a kill at step 5: no adapter, the newest checkpoint half-written.
    half = tmp_path / "cut" / "checkpoints" / "checkpoint-6"
    (half / "trainer_state.json").unlink()
    main([*straight, "--output_dir", str(tmp_path / "cut"), "--resume", "true"])
    weights = [(tmp_path / n / "adapter" / "adapter_model.safetensors").read_bytes() for n in ("straight", "cut")]
    assert weights[0] == weights[1]


def test_evaluating_on_another_task_leaves_the_run_as_it_was(tmp_path, config, capsys):
    run = tmp_path / "run"
    main(["train", "--config", str(config), "--output_dir", str(run)])
    before = (run / "metrics.json").read_text()
    other = write_items(tmp_path / "other.jsonl", items(60, 500))
    main(["evaluate", str(run), "--task", str(other), "--num_samples", "0", "--examples", "5"])
    assert (run / "metrics.json").read_text() == before
    metrics = json.loads((run / "evaluation" / "other" / "metrics.json").read_text())
    assert metrics["num_examples"] == 5 and metrics["num_samples"] == 0 and metrics["spread"] == 0
    whole = ["evaluate", str(run), "--input", str(other), "--num_samples", "0"]
    with pytest.raises(SystemExit):
        main(whole)
    assert "overwrite" in capsys.readouterr().err, "the test split of the same file is another evaluation"
    main([*whole, "--overwrite"])
    metrics = json.loads((run / "evaluation" / "other" / "metrics.json").read_text())
    assert metrics["num_examples"] == 60 and metrics["split"] == "all", "all of the file are scored"
    for wrong in (["--task", "piqa"], ["--split", "dev"]):
        with pytest.raises(SystemExit):
            main(["evaluate", str(run), "--input", str(other), *wrong])
        assert "is scored whole" in capsys.readouterr().err


def test_a_run_on_named_columns_predicts_files_without_labels_and_scores_others(tmp_path, config):
    def table(path: Path, count: int, label: bool) -> Path:
        rows = ["number,text" + (",team" if label else "")]
        teams = ("iron", "wood")
        rows += [f"{n},Which is it ({n})?" + (f",{teams[n % 2]}" if label else "") for n in range(count)]
        path.write_text("\n".join(rows) + "\n")
        return path

    run, options = tmp_path / "run", ["--task.question_column", "text", "--task.label_column", "team"]
    options += ["--task.id_column", "number", "--task.choices", "[iron, wood]"]
    options += ["--task.name", str(table(tmp_path / "a.csv", 60, True))]
    main(["train", "--config", str(config), "--output_dir", str(run), *options])
    bare = table(tmp_path / "bare.csv", 3, False)
    main(["predict", str(run), "--input", str(bare), "--output", str(tmp_path / "out.jsonl")])
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 3
    main(["evaluate", str(run), "--task", str(table(tmp_path / "b.csv", 60, True)), "--num_samples", "0"])
    assert (run / "evaluation" / "b" / "metrics.json").is_file()


def test_files_laid_out_in_another_way_than_the_runs_own(tmp_path, config, capsys):
    """Columns are named, choices of the file's own are taken, and a label that means nothing stops no prediction."""
    run, options = tmp_path / "run", ["--task.choices", "[iron, wood]", "--task.question_column", "text"]
    rows = [json.dumps({"text": f"Which is it ({n})?", "label": ("iron", "wood")[n % 2]}) for n in range(60)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    main(
        ["train", "--config", str(config), "--output_dir", str(run), "--task.name", str(tmp_path / "a.jsonl"), *options]
    )
    other = tmp_path / "other.csv"
    other.write_text("q,A,B,C,team\n" + "".join(f"Which ({n})?,5,4,1,{(4, 'gold', 1)[n % 3]}\n" for n in range(60)))
    predict = ["predict", str(run), "--input", str(other), "--output", str(tmp_path / "out.jsonl")]
    with pytest.raises(SystemExit):
        main(predict)
    assert "'text' (option question_column)" in capsys.readouterr().err
    layout = ["--question_column", "q", "--choices_column", "A,B,C", "--label_column", "team", "--labels", "text"]
    main([*predict, *layout])
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [record.get("label") for record in found[:4]] == [1, None, 2, 1] and len(found[0]["probabilities"]) == 3
    good = tmp_path / "good.csv"
    good.write_text(other.read_text().replace("gold", "5"))
    main(["evaluate", str(run), "--task", str(good), "--num_samples", "0", *layout])
    assert (run / "evaluation" / "good" / "metrics.json").is_file()
    with pytest.raises(SystemExit):
        main(["evaluate", str(run), "--task", "arc_easy", "--labels", "text"])
    assert "labels say how a file is read, but 'arc_easy' is no file" in capsys.readouterr().err


def test_evaluation_keeps_the_dev_scores(tmp_path, config):
    run = tmp_path / "run"
    main(["train", "--config", str(config), "--output_dir", str(run)])
    dev = json.loads((run / "metrics.json").read_text())
    main(["evaluate", str(run)])
    main(["evaluate", str(run)])
    assert json.loads((run / "metrics.json").read_text())["dev"]["nll"] == dev["nll"]


def test_a_new_run_in_the_folder_does_not_resume_from_the_old_one(tmp_path, config):
    run = tmp_path / "run"
    main(["train", "--config", str(config), "--output_dir", str(run), "--train.save_steps", "1"])
    assert not (run / "checkpoints.previous").exists()
    again = ["train", "--config", str(config), "--output_dir", str(run), "--train.max_steps", "2"]
    main([*again, "--overwrite", "true"])
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"beginning.json", "checkpoint-2"}
    # They were kept until the new run had ended.
    assert not (run / "checkpoints.previous").exists()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_config_runs_two_steps(path, tmp_path, tiny_base, tiny_encoder, monkeypatch):
    monkeypatch.chdir(ROOT)
    base = tiny_encoder if path.stem == "classification" else tiny_base
    overrides = {
        "model.name": base,
        "model.device": "cpu",
        "task.train_examples": 8,
        "task.dev_examples": 4,
        "method.last_layers": 2,
        "train.max_steps": 2,
        "train.batch_size": 2,
        "num_samples": 2,
    }
    arguments = [part for name, value in overrides.items() for part in (f"--{name}", str(value))]
    main(["train", "--config", str(path), "--output_dir", str(tmp_path / "run"), *arguments])
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["num_examples"] == 4 and torch.isfinite(torch.tensor(metrics["nll"]))


def test_example_configs_are_found():
    assert len(EXAMPLES) >= 6


def test_a_person_reads_tables_and_a_script_one_line_of_json(tmp_path, config, data, capsys):
    def said(*arguments: object) -> tuple[str, str]:
        main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "{" not in captured.err
        return captured.out, captured.err

    run, test = tmp_path / "run", data / "test.jsonl"
    out, err = said("train", "--config", config, "--output_dir", run)
    assert "step" in err and "nll/item" in err and "kl/item" in err and "step" not in out
    assert re.search(r"\ndev +4 +3 +\d\.\d{3} ", out) and f"next     bayeslora evaluate {run}" in out
    nll = json.loads((run / "metrics.json").read_text())["nll"]
    assert (f"NLL {nll:.3f} on dev is no better than a guess (1.099)" in out) == (nll >= math.log(3))
    out, err = said("evaluate", run)
    assert re.search(r"\ntest +6 +3 +\d\.\d{3} .*\ndev +4 +3 ", out)

    assert json.loads(said("evaluate", run, "--json")[0])["num_examples"] == 6
    call = ["predict", run, "--input", test, "--output", tmp_path / "o", "--abstain_above", 0, "--coverage", 0.6]
    found = json.loads(said(*call, "--json")[0])
    assert found["items"] == found["abstained"] == sum(found["set_sizes"].values()) == 6
    out, _ = said(*call, "--overwrite", "true")
    assert "abstained from 6 of 6 (entropy above 0 nats)" in out and "choices on average" in out


# --- configs ---------------------------------------------------------------------------------------------------------


def test_an_option_of_the_default_method_needs_no_method():
    parser = config_parser(RunConfig)
    for given, kind in (("", "BayesianLora"), ("--method Lora", "Lora"), ("--method.r 3", "BayesianLora")):
        parsed = parser.parse_args([*given.split(), "--method.last_layers", "4"])
        method = instantiate(parser, parsed, RunConfig).method
        assert (type(method).__name__, method.last_layers) == (kind, 4)


def test_a_config_survives_writing_and_reading(tmp_path, config):
    first = parse_config(config)
    (tmp_path / "again.yaml").write_text(dump_config(first))
    again = parse_config(tmp_path / "again.yaml")
    assert again.method.arguments == first.method.arguments
    assert (again.model, again.task, again.train, again.seed) == (first.model, first.task, first.train, first.seed)


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "demo"])
def test_help_explains_every_option(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert "--output" in capsys.readouterr().out


def test_help_has_units_and_defaults(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Peak learning rate of the optimizer. (type: float, default: 0.001)" in text
    assert "Longest sequence in tokens" in text
    with pytest.raises(SystemExit):
        main(["train", "--method.help", "BayesianLora"])
    assert "sigma, the prior standard deviation" in " ".join(capsys.readouterr().out.split())


# --- wrong calls -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "BayesianLra"], "Did you mean 'BayesianLora'?"),
        (["--method.prior_sd", "0.1"], "Did you mean 'method.prior_std'?"),
        (["--trian.epochs", "1"], "Did you mean '--train.epochs'?"),
        (["--task.name", "arc_esy"], "arc_easy"),
        (["--task.name", "missing.jsonl"], "missing.jsonl"),
        (["--task.scoring", "clze"], "cloze"),
        (["--task.question_column", "qestion"], "question"),
        (["--method.posterior", "diagnal"], "Did you mean 'diagonal'?"),
        (["--method.target_modules", "[nothing]"], "nothing"),
        (["--method.last_layers", "9"], "between 1 and the model's 4 layers"),
        (["--model.name", "offline:smolm2"], "offline:smollm2"),
        (["--train.learning_rate", "fast"], "learning_rate"),
        (["--seed", "x"], "seed"),
    ],
)
def test_a_wrong_option_names_field_and_remedy(arguments, said, config, tmp_path, capsys):
    error = fails(capsys, "train", "--config", config, "--output_dir", tmp_path / "run", *arguments)
    assert said in error
    assert not (tmp_path / "run" / "adapter").exists()


def test_an_unknown_key_in_the_file_has_the_nearest_right_one(config, tmp_path, capsys):
    config.write_text(config.read_text().replace("max_steps", "max_stepz"))
    assert "Did you mean 'train.max_steps'?" in fails(capsys, "train", "--config", config, "--output_dir", tmp_path)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"label": 3}, "label"),
        ({"choices": []}, "choices"),
        ({"choices": ["iron", "iron"]}, "iron"),
        ({"question": ""}, "question"),
    ],
)
def test_a_wrong_item_is_named_with_its_line(row, said, config, tmp_path, capsys):
    broken = items(60)
    broken[7] |= row
    path = write_items(tmp_path / "broken.jsonl", broken)
    error = fails(capsys, "train", "--config", config, "--output_dir", tmp_path / "run", "--task.name", path)
    assert said in error and "8" in error


def test_an_empty_file_is_an_error(config, tmp_path, capsys):
    path = write_items(tmp_path / "empty.jsonl", [])
    error = fails(capsys, "train", "--config", config, "--output_dir", tmp_path / "run", "--task.name", path)
    assert "empty" in error


def test_a_folder_that_is_no_run_is_an_error(tmp_path, capsys):
    assert "config.yaml is missing" in fails(capsys, "evaluate", tmp_path)


def test_an_unknown_command_has_the_nearest_right_one(capsys):
    assert "Did you mean 'evaluate'?" in fails(capsys, "evalute")


def test_an_abbreviated_option_is_not_guessed(config, tmp_path, capsys):
    error = fails(capsys, "train", "--config", config, "--output_dir", tmp_path / "run", "--train.epoch", 3)
    assert "Did you mean '--train.epochs'?" in error
    assert not (tmp_path / "run").exists()


def test_another_base_model_is_an_error(tmp_path, config, capsys):
    run = tmp_path / "run"
    main(["train", "--config", str(config), "--output_dir", str(run)])
    other = tmp_path / "other"
    tokenizer = byte_level_tokenizer()
    tiny_llama(seed=9, vocab_size=len(tokenizer), max_position_embeddings=2048).save_pretrained(other)
    tokenizer.save_pretrained(other)
    written = yaml.safe_load((run / "config.yaml").read_text())
    written["model"]["name"] = str(other)
    (run / "config.yaml").write_text(yaml.safe_dump(written))
    assert "belongs to another base model" in fails(capsys, "evaluate", run)


def test_an_exploding_run_stops_and_keeps_the_earlier_adapter(tmp_path, config, capsys, monkeypatch):
    monkeypatch.setattr("bayeslora.runs.beginning.check_arguments", lambda *_, **__: None)
    run = tmp_path / "run"
    main(["train", "--config", str(config), "--output_dir", str(run)])
    before = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    # Adam moves each weight by the learning rate: the logits overflow at the second step.
    error = fails(
        capsys,
        "train",
        "--config",
        config,
        "--output_dir",
        run,
        "--overwrite",
        "true",
        "--train.arguments.learning_rate",
        "1e30",
        "--train.warmup",
        "0",
    )
    assert "at step" in error and "before the update" in error
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == before


@pytest.mark.parametrize("method", method_classes(), ids=lambda method: method.__name__)
def test_a_method_named_alone_has_its_own_defaults(method):
    """Not those that the default method has under the same names."""
    parser = config_parser(RunConfig)
    parsed = parser.parse_args(["--method", method.__name__, "--method.r", "3"])
    assert instantiate(parser, parsed, RunConfig).method.arguments == method(r=3).arguments


def test_it_says_its_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.split() == ["bayeslora", __version__]


def test_the_command_line_starts_without_the_libraries_of_metrics_and_pictures():
    """They take seconds to import, and `--help` needs none of them."""
    slow = ("torchmetrics", "sklearn.metrics", "matplotlib")
    script = f"import sys, bayeslora_cli.main; print([name for name in {slow} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240)
    assert done.stdout.strip() == "[]", done.stderr


# --- what errors say besides the error -------------------------------------------------------------------------------


def test_an_error_names_the_files_that_options_were_read_from(capsys, tmp_path):
    path = tmp_path / "mine.yaml"
    for content, status in (("num_samples: many\n", 2), ("num_samples: -1\n", 1)):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(SystemExit) as stopped:
            main(["train", "--config", str(path), "--output_dir", str(tmp_path / "run")])
        said = capsys.readouterr().err
        assert "num_samples" in said and str(path) in said, said
        assert stopped.value.code in (1, status)
    assert "mine.yaml" not in fails(capsys, "train", "--num_samples", "many", "--output_dir", tmp_path / "run")


def test_a_full_disk_is_an_error_with_a_remedy(capsys, config, tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "adapter_config.json")

    monkeypatch.setattr("bayeslora.runs.writing.save_adapter", full)
    said = fails(capsys, "train", "--config", config, "--output_dir", tmp_path / "run")
    assert "the disk is full" in said and "adapter_config.json" in said and "--resume" in said


@pytest.mark.parametrize("place", ["bayeslora.runs.writing.save_adapter", "transformers.Trainer._save_checkpoint"])
def test_what_tokenizers_raise_over_a_full_disk_has_one_remedy_too(place, capsys, config, tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise Exception("No space left on device (os error 28)")

    monkeypatch.setattr(place, full)
    said = fails(capsys, "train", "--config", config, "--output_dir", tmp_path / "run")
    assert said.count("--resume") == 1, said


@pytest.mark.parametrize("debug", ["", "1"], ids=["for a person", "debug"])
def test_an_interrupted_command_ends_by_the_signal_and_says_what_to_do(debug):
    script = (
        "import bayeslora_cli.main as cli, os, signal; cli._parse = lambda *_: os.kill(os.getpid(), signal.SIGINT); "
        "signal.signal(signal.SIGINT, signal.default_int_handler); cli.main(['report', 'x'])"
    )
    environment = {**os.environ, "BAYESLORA_DEBUG": debug}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == -signal.SIGINT
    assert ("Traceback" in done.stderr) == bool(debug) == ("--resume" not in done.stderr), done.stderr

"""What the command line imports before it knows that there is something to do."""

import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from bayeslora.options.hints import Names, hint, nearest
from bayeslora.options.parser import reworded
from bayeslora_cli.commands import command_classes
from bayeslora_cli.commands.base import ConfigCommand
from bayeslora_cli.commands.scores import guess_said, one_pass_said, scores_table
from bayeslora_cli.main import main

NAMES = [each.name for each in command_classes()]
WITH_CONFIG = [each for each in command_classes() if issubclass(each, ConfigCommand)]
HEAVY = ("torch", "transformers", "peft", "numpy", "datasets", "safetensors", "matplotlib", "sklearn")

SCRIPT = """
import contextlib, io, sys
from bayeslora_cli.main import main
for call in {calls}:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main(call.split())
        except SystemExit as stopped:
            assert stopped.code == {code}, (call, stopped.code)
    assert len(said.getvalue().splitlines()) >= {lines}, (call, said.getvalue())
    found = sorted(set({heavy}) & set(sys.modules))
    assert not found, (call, found)
print("light:", len(sys.modules))
"""


def start(calls: list[str], code: int, lines: int) -> int:
    """The number of modules that are imported after `calls`, each of which ends with `code` and says that much."""
    script = SCRIPT.format(calls=calls, code=code, lines=lines, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def test_help_of_no_command_imports_anything_heavy():
    names = "train compare sweep chain continual rank-study evaluate predict export report push generate diagnose serve"
    assert set(names.split()) <= set(NAMES)
    assert start(["--help", "", *(f"{name} --help" for name in NAMES)], code=0, lines=8) < 600
    assert start(["--version"], code=0, lines=1) < 600


@pytest.mark.parametrize("kind", command_classes(), ids=lambda kind: kind.name)
def test_every_command_with_a_result_prints_it_as_json(kind):
    without = {"serve", "demo", "lm-eval", "decide"}  # as docs/guides/output.md says
    assert ("--json" in kind().help_parser().format_help()) == (kind.name not in without)


@pytest.mark.parametrize("call", ["compare --help", "evaluate"])
def test_the_package_as_a_module_is_the_command_and_imports_no_more(call):
    """So that other libraries' messages are hidden before they are imported: `torchrun -m bayeslora` too."""
    command = [sys.executable, "-X", "importtime", "-m", "bayeslora", *call.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert done.returncode == (0 if "help" in call else 2) and "jsonargparse" in imported
    assert not imported & set(HEAVY)


def test_wrong_calls_of_such_commands_import_nothing_heavy():
    calls = ["evalute", "evaluate", "predict --exampels 3", "evaluate r --examples ten", "diagnose r --split all"]
    start(calls, code=2, lines=2)


TRAIN = [
    *("config", "model", "model.name", "model.device", "task", "task.name", "task.test_examples", "method", "train"),
    *("train.epochs", "train.learning_rate", "train.max_steps", "train.batch_size", "seed", "num_samples"),
    *("batch_size", "output_dir", "resume", "overwrite"),
]
METHODS = {"Lora": ["r", "lora_alpha", "prior_std"], "BayesianLora": ["r", "lora_alpha", "inducing_rows"]}


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        *(("lr", "train.learning_rate"), ("train.lr", "train.learning_rate"), ("epochs", "train.epochs")),
        *(("rank", "method.r"), ("method.rank", "method.r"), ("samples", "num_samples"), ("dataset", "task.name")),
        *(("output", "output_dir"), ("out", "output_dir"), ("train-batch-size", "train.batch_size")),
        ("steps", "train.max_steps"),
        *(("trian.epochs", "train.epochs"), ("train.epoch", "train.epochs"), ("gpu", "model.device"), ("qqq", None)),
    ],
)
def test_the_nearest_by_meaning_and_by_spelling(wrong, right):
    names = Names(TRAIN, methods=METHODS)
    assert nearest(wrong, names.of("option")) == right


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("unrecognized arguments: mine.yaml", " Did you mean '--config mine.yaml'?"),
        ("unrecognized arguments: --rank 3", " Did you mean '--method.r'?"),
        ("Parser key \"model\":\nUnable to load config 'tiny'", " Did you mean 'model.name'?"),
        ('Parser key "method":\n  Expected a dot import path string: bayesian_lora', " Did you mean 'BayesianLora'?"),
        ("Parser key \"seed\":\n  Expected a <class 'int'>. Got value: x", ""),
    ],
)
def test_hints_on_messages_of_the_parser(message, said):
    assert hint(message, Names(TRAIN, methods=METHODS)) == said


def test_a_text_where_a_list_belongs_is_answered_with_a_list():
    said = """Parser key "task.classes":
  Does not validate against any of the Union subtypes
  Subtypes: [list[str], <class 'NoneType'>]
  Errors:
    - Expected a <class 'list'>
    - Expected a <class 'NoneType'>
  Given value type: <class 'str'>
  Given value: red,green"""
    assert reworded(said) == "task.classes must be a list such as [a, b], got 'red,green'."


def test_the_mean_of_draws_in_a_table_has_two_decimals():
    table = scores_table({"split": "test", "num_examples": 1200, "num_samples": 2.7123333, "nll": 1.0})
    assert table.splitlines()[-1].split() == ["test", "1,200", "2.71", "1.000"]


@pytest.mark.parametrize(("error", "said"), [(0.123, "temperature 1.43 ± 0.12"), (None, "temperature 1.43")])
def test_a_table_says_the_temperature_of_its_scores(error, said):
    scores = {"split": "dev", "num_examples": 9, "nll": 1.0}
    record = {"temperature": 1.4321, "temperature_standard_error": error}
    assert scores_table(scores | record).splitlines() == [*scores_table(scores).splitlines(), said]


@pytest.mark.parametrize(("nll", "said"), [(0.9, True), (1.0, True), (1.1, False)])
def test_the_mean_in_one_pass_stands_below_its_draws_and_is_advised_where_it_is_no_worse(nll, said):
    scores = {"split": "dev", "num_examples": 9, "num_samples": 10, "nll": 1.0}
    scores["one_pass"] = {"num_examples": 9, "num_samples": 0, "nll": nll}
    assert scores_table(scores).splitlines()[-1].split() == ["dev,", "one", "pass", "9", "0", f"{nll:.3f}"]
    assert ("--num_samples 0" in one_pass_said(scores)) == said


@pytest.mark.parametrize(("nll", "said"), [(1.386, True), (1.647, True), (1.3, False)])
def test_a_training_that_is_no_better_than_a_guess_is_told_what_to_do(nll, said):
    advice = guess_said(nll, 1.386)
    assert ("no better than a guess (1.386)" in advice and "--train.epochs" in advice) == said == bool(advice)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("evalute", "there is no command 'evalute'. Did you mean 'evaluate'?\nSee `bayeslora --help`"),
        ("predict", "missing: run, --input, --output\nSee `bayeslora predict --help`"),
        ("evaluate r --examples ten", "examples must be a whole number, got 'ten'."),
        ("diagnose r --split all", "split must be one of 'dev', 'test', got 'all'."),
        ("evaluate r --num-samples 3", "Did you mean '--num_samples'?"),
        ("evaluate r --samples=3 --data x", "Did you mean '--num_samples' (for --samples), '--task' (for --data)?"),
        ("evaluate r extra", "unrecognized arguments: extra\nSee `bayeslora evaluate --help`"),
        ("predict r --qqq 3", "unrecognized arguments: --qqq 3 Correct its name, or leave it out."),
        ("", ""),
    ],
)
def test_errors_are_in_the_words_of_the_command_line(call, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(call.split())
    assert stopped.value.code == (2 if call else 0)
    assert said in capsys.readouterr().err


IMPORTS = """
import sys
import peft
before = set(sys.modules)
import bayeslora
beyond = set(sys.modules) - before
print(len(before), len(beyond), sorted({name.partition(".")[0] for name in beyond} - set(sys.stdlib_module_names)))
import bayeslora.runs.config
print(sorted({"datasets", "sklearn", "matplotlib", "pandas", "torchmetrics"} & (set(sys.modules) - before)))
"""


def test_importing_the_package_costs_what_importing_peft_costs_and_configs_need_no_trainer():
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    package, configs = done.stdout.splitlines()
    before, beyond, names = package.split(maxsplit=2)
    assert int(beyond) <= 0.03 * int(before) and names == "['bayeslora']"
    assert configs == "[]"


def test_a_name_that_a_package_gives_late_is_no_module_of_it():
    """Importing the module would put it in the name's place."""
    from bayeslora import runs

    assert set(runs.__all__) == set(runs._HOME)
    assert not set(runs.__all__) & {path.stem for path in Path(runs.__path__[0]).iterdir()}


def options(parser):
    return {action.dest for action in parser._actions if not action.dest.endswith(".help")}


@pytest.mark.parametrize("command", WITH_CONFIG, ids=lambda command: command.name)
def test_the_help_names_every_option_and_method(command, capsys):
    from bayeslora.methods import METHODS
    from bayeslora.options.registry import names_of_classes

    light, whole = command().help_parser(), command().parser()
    assert options(light) == options(whole)
    helps = [{action.dest: action.help for action in parser._actions} for parser in (light, whole)]
    assert all(helps[0][name] == helps[1][name] for name in options(light))
    own = [each.__name__ for each in METHODS.classes() if each.__module__.startswith("bayeslora.methods.")]
    assert names_of_classes("bayeslora.methods") == sorted(own)
    for call in ([command.name, "--help"], ["-v", command.name, "-h"]):
        with pytest.raises(SystemExit):
            main(call)
        said = capsys.readouterr().out
        assert all(name in said for name in own) and "--train.learning_rate" in said


def test_the_help_has_the_same_defaults_as_the_config(monkeypatch):
    from bayeslora.methods import Method
    from bayeslora_cli.commands.base import _class

    def plain(value):
        """A config as data, with methods by the names of their classes."""
        if isinstance(value, Method):
            return type(value).__name__
        if isinstance(value, dict):
            return {name: plain(each) for name, each in value.items()}
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)} if is_dataclass(value) else value

    monkeypatch.setattr("bayeslora.experiments.comparison.config.CompareConfig.__post_init__", lambda self: None)
    monkeypatch.setattr("bayeslora.experiments.learning_rates.config.SweepConfig.__post_init__", lambda self: None)
    monkeypatch.setattr("bayeslora.runs.config.RunConfig.__post_init__", lambda self: None)
    for command in WITH_CONFIG:
        assert plain(_class(command.options_path)()) == plain(_class(command.config_path)()), command.name

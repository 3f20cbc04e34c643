"""Runs on the Hub: what is published, that it loads from there, and that nothing of this machine goes along."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from fake_hub import Repository, fake_hub
from huggingface_hub import ModelCard
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

import bayeslora
from bayeslora.deploy.hub import write_hub_folder
from bayeslora.methods import BayesianLora, Lora
from bayeslora.runs import evaluate, load_run, train
from bayeslora.runs.config import ModelConfig, RunConfig, TaskConfig, TrainConfig
from bayeslora.runs.config_files import parse_config
from bayeslora.runs.model_card import CardFacts, model_card
from bayeslora.system.locating import run_folder
from bayeslora.tasks import Item
from bayeslora_cli.main import main
from conftest import byte_level_tokenizer, distance, tiny_llama

WORDS = ["sunlight and water", "iron", "wood", "a star", "the moon"]
ITEM = Item("1", "Which gas do plants take in?", ("oxygen", "carbon dioxide"), None)
REPO = "anna/plants"


def rows(count: int, offset: int) -> str:
    items = [
        {
            "id": f"secret-{offset + n}",
            "question": f"What do plants need to grow ({offset + n})?",
            "choices": [WORDS[(n + k) % 5] for k in range(3)],
            "label": n % 3,
        }
        for n in range(count)
    ]
    return "".join(json.dumps(item) + "\n" for item in items)


def config(folder: Path, method) -> RunConfig:
    return RunConfig(
        model=ModelConfig(name=str(folder / "base"), device="cpu"),
        task=TaskConfig(name=str(folder / "data")),
        method=method,
        train=TrainConfig(max_steps=2, batch_size=4, cache_trunk_folder=str(folder / "cache")),
        num_samples=3,
        temperature_scaling=True,
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base model, data, a run and one of plain LoRA, both evaluated on the test split."""
    folder = tmp_path_factory.mktemp("private-home")
    tokenizer = byte_level_tokenizer()
    tiny_llama(vocab_size=len(tokenizer), max_position_embeddings=256).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    (folder / "data").mkdir()
    for part, count, offset in (("train", 8, 0), ("dev", 4, 100), ("test", 6, 200)):
        (folder / "data" / f"{part}.jsonl").write_text(rows(count, offset))
    for name, method in (("run", BayesianLora(r=2, last_layers=2, prior_std=0.3)), ("lora", Lora(r=2, last_layers=2))):
        train(config(folder, method), folder / name)
        evaluate(folder / name)
    return folder


@pytest.fixture(scope="module")
def published(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hub_folder(home / "run", tmp_path_factory.mktemp("hub") / "out", REPO, baseline=home / "lora")


@pytest.fixture(scope="module")
def expected(home: Path) -> torch.Tensor:
    return load_run(home / "run").predict([ITEM]).predictive.samples


# --- what is published -----------------------------------------------------------------------------------------------


def test_the_folder_holds_the_adapter_at_its_root_and_no_data(published):
    assert sorted(path.name for path in published.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "config.yaml",
        "metrics.json",
        "reliability.png",
    ]


def test_no_path_of_this_machine_and_no_item_is_published(published, home):
    for path in published.iterdir():
        data = path.read_bytes()
        for private in (str(home), home.name, str(Path.home()) + "/", "secret-"):
            assert private.encode() not in data, f"{private} in {path.name}"


def test_the_config_trains_the_same_adapter_elsewhere(published, home):
    own, public = parse_config(home / "run" / "config.yaml"), parse_config(published / "config.yaml")
    assert public.model == replace(own.model, name="./base", device="auto")
    assert public.task == replace(own.task, name="./data")
    assert public.train == replace(own.train, cache_trunk_folder=None)
    assert public.method.arguments == own.method.arguments and public.seed == own.seed
    assert json.loads((published / "metrics.json").read_text())["task"] == "./data"
    assert json.loads((published / "adapter_config.json").read_text())["base_model_name_or_path"] == "./base"


def test_a_base_model_in_a_folder_warns_and_base_model_names_it(home, tmp_path, caplog):
    write_hub_folder(home / "run", tmp_path / "one", REPO)
    assert "--base_model" in caplog.text
    caplog.clear()
    named = write_hub_folder(home / "run", tmp_path / "two", REPO, base_model="org/base")
    assert "--base_model" not in caplog.text
    assert ModelCard.load(named / "README.md").data.base_model == "org/base"
    assert parse_config(named / "config.yaml").model.name == "org/base"
    assert json.loads((named / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/base"
    assert json.loads((named / "metrics.json").read_text())["model"] == "org/base"


def test_a_relative_path_is_no_hub_id(home, tmp_path, monkeypatch):
    """`base` would be one, and so would `here/base`."""
    shutil.copytree(home / "run", tmp_path / "run")
    changed = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    changed["model"]["name"] = "here/base"
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(changed))
    (tmp_path / "here" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    folder = write_hub_folder("run", "out", REPO)
    assert parse_config(folder / "config.yaml").model.name == "./base"
    assert ModelCard.load(folder / "README.md").data.base_model is None


def test_more_is_published_only_when_asked_for(home, tmp_path, caplog):
    folder = write_hub_folder(home / "run", tmp_path / "out", REPO, include=["predictions.jsonl", "checkpoints"])
    assert (folder / "predictions.jsonl").read_text() == (home / "run" / "predictions.jsonl").read_text()
    assert list((folder / "checkpoints").glob("checkpoint-*"))
    assert "predictions.jsonl is published as it is" in caplog.text
    with pytest.raises(FileNotFoundError, match="no 'nothing' in"):
        write_hub_folder(home / "run", tmp_path / "other", REPO, include=["nothing"])
    with pytest.raises(FileNotFoundError, match="to include"):
        write_hub_folder(home / "run", tmp_path / "other", REPO, include=["../data"])
    assert not (tmp_path / "other").exists()


def test_the_state_of_a_method_goes_along(home, tmp_path):
    shutil.copytree(home / "run", tmp_path / "run")
    (tmp_path / "run" / "posterior.safetensors").write_bytes(b"state")
    folder = write_hub_folder(tmp_path / "run", tmp_path / "out", REPO)
    assert (folder / "posterior.safetensors").read_bytes() == b"state"
    assert "only `load_run` reads it" in (folder / "README.md").read_text()


# --- the card --------------------------------------------------------------------------------------------------------


def test_the_metadata_is_read_by_the_hub(published, home):
    data = ModelCard.load(published / "README.md").data
    metrics = json.loads((home / "run" / "metrics.json").read_text())
    assert (data.library_name, data.license, data.base_model) == ("peft", "unknown", None)
    assert {"bayeslora", "lora", "bayesian_lora"} <= set(data.tags)
    found = {result.metric_type: result.metric_value for result in data.eval_results}
    assert found == {name: pytest.approx(metrics[name], abs=1e-6) for name in ("accuracy", "nll", "ece", "brier")}
    assert {result.dataset_split for result in data.eval_results} == {"test"}
    assert data.model_name == "plants"


def test_the_card_of_a_built_in_task_names_base_model_and_data():
    metrics = {"method": "bayesian_lora", "task": "arc_easy", "split": "test", "train_examples": 9, "seed": 0}
    numbers = {"accuracy": 0.5, "nll": 1.2, "ece": 0.1, "brier": 0.6, "num_examples": 8, "num_samples": 10}
    rest = {"train_seconds": 3.0, "trainable_parameters": 100}
    card = model_card(RunConfig(), metrics | numbers | rest, CardFacts(place=REPO, license="apache-2.0"))
    data = ModelCard(str(card)).data
    assert data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct" and data.datasets == ["allenai/ai2_arc"]
    assert data.license == "apache-2.0" and "licence" not in card.content
    assert data.eval_results[0].dataset_type == "allenai/ai2_arc"
    plain = model_card(RunConfig(method=Lora()), metrics | numbers | rest | {"method": "lora"}, CardFacts(place=REPO))
    assert "KeyError" not in plain.content and "import bayeslora  # before PEFT" not in plain.content


def test_the_calibration_table_adds_up_to_the_ece(published, home):
    card = (published / "README.md").read_text()
    found = re.findall(r"^\| [\d.]+ to [\d.]+ \| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", card, re.MULTILINE)
    bins = [(int(count), float(confidence), float(accuracy)) for count, confidence, accuracy in found]
    metrics = json.loads((home / "run" / "metrics.json").read_text())
    assert sum(count for count, _, _ in bins) == metrics["num_examples"] == 6
    ece = sum(count * abs(confidence - accuracy) for count, confidence, accuracy in bins) / 6
    assert ece == pytest.approx(metrics["ece"], abs=1e-3)


def test_the_comparison_stands_there_only_if_it_was_measured(published, home, tmp_path):
    lora = json.loads((home / "lora" / "metrics.json").read_text())
    assert (
        f"| lora (for comparison) | {lora['accuracy']:.4g} | {lora['nll']:.4g} |"
        in (published / "README.md").read_text()
    )
    alone = write_hub_folder(home / "run", tmp_path / "out", REPO)
    assert "comparison" not in (alone / "README.md").read_text()
    shutil.copytree(home / "lora", tmp_path / "lora")
    (tmp_path / "lora" / "metrics.json").write_text(json.dumps(lora | {"split": "dev"}))
    with pytest.raises(ValueError, match="split is 'dev', here it is 'test'"):
        write_hub_folder(home / "run", tmp_path / "other", REPO, baseline=tmp_path / "lora")


@pytest.mark.parametrize("kept", [True, False])
def test_a_picture_of_other_predictions_is_left_out(home, tmp_path, caplog, kept):
    """A run that was trained anew has the picture of the earlier adapter until it is evaluated."""
    shutil.copytree(home / "run", tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(metrics | {"accuracy": 0.123}))
    if not kept:
        (tmp_path / "run" / "predictions.jsonl").unlink()
    folder = write_hub_folder(tmp_path / "run", tmp_path / "out", REPO)
    assert "bayeslora evaluate" in caplog.text
    assert not (folder / "reliability.png").exists() and "reliability.png" not in (folder / "README.md").read_text()


def test_an_unfinished_run_is_not_published(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a finished run"):
        write_hub_folder(tmp_path, tmp_path / "out", REPO)


# --- loading ---------------------------------------------------------------------------------------------------------


def test_the_published_folder_loads_as_the_run_does(published, home, expected, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="base_model="):
        load_run(published)
    run = load_run(published, base_model=str(home / "base"))
    assert distance(run.predict([ITEM]).predictive.samples, expected) < 1e-6
    assert run.temperature == json.loads((home / "run" / "metrics.json").read_text())["temperature"]
    monkeypatch.chdir(home)
    assert distance(load_run(published).predict([ITEM]).predictive.samples, expected) < 1e-6


def answered(error: Exception):
    def download(*arguments, **options):
        raise error

    return download


RESPONSE = SimpleNamespace(headers={}, request=None, status_code=404)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (LocalEntryNotFoundError("no connection"), "HF_HUB_OFFLINE"),
        (RepositoryNotFoundError("404", response=RESPONSE), "hf auth login"),
        (GatedRepoError("403", response=RESPONSE), "ask for access"),
        (ConnectionResetError("reset"), "could not be downloaded: ConnectionResetError"),
    ],
)
def test_a_hub_id_that_cannot_be_loaded_says_what_to_do(monkeypatch, error, says):
    monkeypatch.setattr("bayeslora.system.locating.snapshot_download", answered(error))
    with pytest.raises(OSError, match="there is no folder 'anna/nothing' here") as caught:
        load_run("anna/nothing")
    assert says in str(caught.value)


def test_a_revision_may_stand_behind_the_id(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        "bayeslora.system.locating.snapshot_download",
        lambda repo_id, revision, allow_patterns: asked.append((repo_id, revision)) or str(tmp_path),
    )
    run_folder("anna/plants"), run_folder("anna/plants@v1.0"), run_folder("anna/plants@v1", revision="v2")
    assert asked == [("anna/plants", None), ("anna/plants", "v1.0"), ("anna/plants", "v2")]
    assert run_folder(tmp_path) == tmp_path and run_folder("no/such/folder") == Path("no/such/folder")


def test_evaluating_a_run_of_the_hub_needs_a_folder_to_write_to():
    with pytest.raises(ValueError, match=r"check its name.*--output_dir FOLDER"):
        evaluate("anna/plants")


def test_a_hub_that_does_not_answer_says_what_to_do(home, monkeypatch):
    monkeypatch.setattr("bayeslora.deploy.hub.HfApi", answered(ConnectionResetError("reset")))
    with pytest.raises(OSError, match="could not be pushed to anna/plants") as caught:
        bayeslora.push_to_hub(home / "run", REPO)
    assert "hf auth login" in str(caught.value)


def test_a_folder_that_holds_something_is_left_alone(home, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="left alone"):
        write_hub_folder(home / "run", tmp_path, REPO)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_the_command_can_write_the_folder_only(home, tmp_path, capsys):
    arguments = ["push", str(home / "run"), "--repo_id", REPO, "--output_dir", str(tmp_path / "out")]
    main([*arguments, "--license", "apache-2.0", "--datasets", '["org/data"]'])
    assert f"to push: {tmp_path / 'out'}" in capsys.readouterr().out
    main([*arguments[:-1], str(tmp_path / "again"), "--json"])
    assert json.loads(capsys.readouterr().out) == {"folder": str(tmp_path / "again")}
    data = ModelCard.load(tmp_path / "out" / "README.md").data
    assert data.license == "apache-2.0" and data.datasets == ["org/data"]


# --- with a Hub ------------------------------------------------------------------------------------------------------

PUSH = """
import sys
from bayeslora_cli.main import main
main(["push", sys.argv[1], "--repo_id", "anna/plants", "--private"])
main(["push", sys.argv[1], "--repo_id", "anna/old"])
try:
    main(["push", sys.argv[1], "--repo_id", "anna/old", "--private"])
except SystemExit as stopped:
    assert stopped.code == 1
else:
    raise AssertionError("a public repository took a private run")
"""

LOAD = """
import sys, torch
import bayeslora
from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained(sys.argv[1])
model = PeftModel.from_pretrained(base, "anna/plants")
ids = torch.arange(4, 20)[None]
with torch.no_grad():
    torch.save(model(ids).logits, "logits.pt")
print(model.peft_config["default"].base_model_name_or_path)

import os, re
from pathlib import Path
from huggingface_hub import hf_hub_download
os.chdir(sys.argv[2])
text = Path(hf_hub_download("anna/plants", "README.md")).read_text()
code = re.findall(r"```python\\n(.*?)```", text, re.DOTALL)
assert len(code) == 2, text
for block in code:
    scope = {}
    exec(block, scope)
    if "predictive" in scope:
        torch.save(scope["predictive"].samples, sys.argv[3])
from bayeslora.runs import evaluate
evaluate("anna/plants", output_dir=sys.argv[4])
"""


def fresh_process(script: str, folder: Path, *arguments: Path) -> subprocess.CompletedProcess[str]:
    """`script` in a new Python with the environment of this one."""
    command = [sys.executable, script, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=folder, env=environment)


def test_push_and_load_by_id(home, expected, tmp_path, monkeypatch):
    """Through HTTP: the command pushes, and new processes load by id, with PEFT and as the card says."""
    with fake_hub() as hub:
        for name, value in {**hub.environment, "HF_HOME": str(tmp_path / "cache")}.items():
            monkeypatch.setenv(name, value)
        hub.repositories["anna/old"] = Repository(private=False)
        hub.repositories["anna/old"].add({"posterior.safetensors": b"of an earlier push", "notes.md": b"kept"})
        (tmp_path / "push.py").write_text(PUSH)
        done = fresh_process("push.py", tmp_path, home / "run")
        assert done.returncode == 0, done.stderr[-3000:]
        repository = hub.repositories[REPO]
        assert repository.private and f"pushed: {hub.address}/{REPO}/commit/{repository.head}" in done.stdout
        files = {
            *("README.md", "adapter_config.json", "adapter_model.safetensors"),
            *("config.yaml", "metrics.json", "reliability.png"),
        }
        assert set(repository.commits[repository.head]) == files
        assert set(hub.repositories["anna/old"].commits[hub.repositories["anna/old"].head]) == {*files, "notes.md"}
        (tmp_path / "load.py").write_text(LOAD)
        done = fresh_process("load.py", tmp_path, home / "base", home, tmp_path / "p.pt", tmp_path / "scores")
        assert done.returncode == 0, done.stderr[-3000:]
        assert "./base" in done.stdout
    run = load_run(home / "run")
    with torch.no_grad():
        assert distance(torch.load(tmp_path / "logits.pt"), run.model(torch.arange(4, 20)[None]).logits) < 1e-6
    assert distance(torch.load(tmp_path / "p.pt"), expected) < 1e-6
    scores = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert scores["nll"] == pytest.approx(json.loads((home / "run" / "metrics.json").read_text())["nll"], abs=1e-5)
    # The snapshot is in the cache, and this process has no connection.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
    assert load_run("anna/plants", base_model=str(home / "base")).config.model.name == str(home / "base")

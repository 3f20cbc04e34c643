"""What users have on disk is read for ever: adapters of format versions 1 and 2, a run folder, and results files."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from bayeslora import sampling
from bayeslora.adapters.starts import open_adapter
from bayeslora.experiments.comparison import Results
from bayeslora.metrics import summary
from bayeslora_cli.main import main

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden" / "v1"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("posterior", sorted(EXPECTED["logits"]))
def test_a_golden_checkpoint_still_means_what_it_meant(posterior, version):
    folder = GOLDEN.parent / version
    known = json.loads((folder / "expected.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    model = PeftModel.from_pretrained(base, str(folder / posterior))
    ids = torch.tensor(known["input_ids"])
    with torch.no_grad():
        mean = model(ids).logits[:, -1, :5]
        with sampling(model, num_samples=2, seed=3):
            draws = model(ids).logits[:, -1, :5]
    expected = known["logits"][posterior]
    torch.testing.assert_close(mean, torch.tensor(expected["mean"]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(draws, torch.tensor(expected["draws"]), rtol=1e-4, atol=1e-5)
    assert (draws - mean.repeat(2, 1)).abs().max() > 1e-3


@pytest.mark.parametrize("posterior", sorted(EXPECTED["logits"]))
def test_an_adapter_of_format_1_is_saved_in_format_2_and_means_the_same(posterior, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(GOLDEN / "base")
    open_adapter(base, GOLDEN / posterior).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["format_version"] == 2
    names = {name.rpartition(".")[2] for name in load_file(tmp_path / "adapter_model.safetensors")}
    assert names == ({"variational"} if posterior == "full" else {"mean", "variational"})
    again = open_adapter(AutoModelForCausalLM.from_pretrained(GOLDEN / "base"), tmp_path)
    with torch.no_grad(), sampling(again, num_samples=2, seed=3):
        draws = again(torch.tensor(EXPECTED["input_ids"])).logits[:, -1, :5]
    torch.testing.assert_close(draws, torch.tensor(EXPECTED["logits"][posterior]["draws"]), rtol=1e-4, atol=1e-5)


def test_an_adapter_of_format_1_goes_beside_another_and_loads_as_a_whole_state():
    base = AutoModelForCausalLM.from_pretrained(GOLDEN / "base")
    model = open_adapter(base, GOLDEN / "matrix_normal")
    model.load_adapter(str(GOLDEN / "diagonal"), adapter_name="second")
    factors = [module for name, module in model.named_modules() if name.endswith("lora_A.second")]
    file = load_file(GOLDEN / "diagonal" / "adapter_model.safetensors")
    assert len(factors) == 1
    for name, value in factors[0].parameters_by_name.items():
        (stored,) = (tensor for key, tensor in file.items() if key.endswith(f"lora_A.{name}"))
        assert torch.equal(value, stored), name


def test_an_adapter_of_format_1_without_one_of_its_tensors_is_damaged(tmp_path):
    shutil.copytree(GOLDEN / "diagonal", tmp_path, dirs_exist_ok=True)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors.pop(next(name for name in tensors if name.endswith("v_log_std")))
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"variational must have the shape .*copy the adapter again"):
        open_adapter(AutoModelForCausalLM.from_pretrained(GOLDEN / "base"), tmp_path)


def test_a_run_folder_from_before_the_rooms_is_evaluated_as_it_was(tmp_path, monkeypatch):
    """Trained and evaluated when methods, scorings and metrics lay in other modules (`run_v1`; commit 671be66)."""
    folder = shutil.copytree(GOLDEN.parent / "run_v1", tmp_path / "world")
    monkeypatch.chdir(folder)
    main(["evaluate", "run", "--output_dir", "again"])
    before, after = (json.loads((folder / name / "metrics.json").read_text("utf-8")) for name in ("run", "again"))
    scores = [
        "accuracy",
        "nll",
        "ece",
        "brier",
        "adaptive_ece",
        "mce",
        "auroc",
        "aurc",
        "accuracy_at_80",
        "temperature",
    ]
    assert {name: after[name] for name in scores} == pytest.approx({name: before[name] for name in scores}, abs=1e-4)


FILES = sorted((ROOT / "studies").rglob("results.jsonl"))
RESULTS = [path for path in FILES if json.loads(path.read_text("utf-8").partition("\n")[0]).get("kind") == "header"]
"""Those of comparisons; other studies have formats of their own."""


def test_all_committed_comparisons_are_known_by_their_headers():
    assert len(RESULTS) >= 7


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_committed_results_are_read(path):
    results = Results.read(path)
    cells = [cell for cell in results.cells() if cell.predictions]
    assert cells
    split, predictions = next(iter(cells[0].predictions.items()))
    labels = results.items(cells[0].task, split).labels
    assert labels is None or summary(predictions.padded(), results.items(cells[0].task, split).label_array())["nll"] > 0

"""What users have on disk is read for ever: adapters of format version 1, a run folder, and results files."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from bayeslora import sampling
from bayeslora.experiments.comparison import Results
from bayeslora.metrics import summary
from bayeslora_cli.main import main

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden" / "v1"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())


@pytest.mark.parametrize("posterior", sorted(EXPECTED["logits"]))
def test_a_golden_checkpoint_still_means_what_it_meant(posterior):
    base = AutoModelForCausalLM.from_pretrained(GOLDEN / "base")
    model = PeftModel.from_pretrained(base, str(GOLDEN / posterior))
    ids = torch.tensor(EXPECTED["input_ids"])
    with torch.no_grad():
        mean = model(ids).logits[:, -1, :5]
        with sampling(model, num_samples=2, seed=3):
            draws = model(ids).logits[:, -1, :5]
    expected = EXPECTED["logits"][posterior]
    torch.testing.assert_close(mean, torch.tensor(expected["mean"]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(draws, torch.tensor(expected["draws"]), rtol=1e-4, atol=1e-5)
    assert (draws - mean.repeat(2, 1)).abs().max() > 1e-3


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
    assert len(RESULTS) >= 8


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_committed_results_are_read(path):
    results = Results.read(path)
    cells = [cell for cell in results.cells() if cell.predictions]
    assert cells
    split, predictions = next(iter(cells[0].predictions.items()))
    labels = results.items(cells[0].task, split).labels
    assert labels is None or summary(predictions.padded(), results.items(cells[0].task, split).label_array())["nll"] > 0

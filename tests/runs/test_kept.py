"""What a run computes once and keeps: used as long as it is of the same adapter, config and draws, and not longer."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from test_conformal import run, write_items  # noqa: F401

from bayeslora.runs import calibrated_on_dev, load_run, predict_file, task_items
from bayeslora.runs.dev_predictions import dev_probabilities
from bayeslora.runs.run import Run
from bayeslora.runs.unsure import EXCEPTION, unsure_above


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:  # noqa: F811
    return Path(shutil.copytree(run, tmp_path / "run"))


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many items each prediction had."""
    counts, own = [], Run.predict

    def predict(self, items, *args, **kwargs):
        counts.append(len(items))
        return own(self, items, *args, **kwargs)

    monkeypatch.setattr(Run, "predict", predict)
    return counts


def test_training_keeps_the_dev_predictions_and_coverage_uses_them(copied, predicted, tmp_path):
    bare = write_items(tmp_path / "in.jsonl", 2, label=False)
    predict_file(copied, bare, tmp_path / "out.jsonl", coverage=0.6)
    assert predicted == [2]
    loaded = load_run(copied)
    dev = task_items(loaded.config.task).dev
    kept = dev_probabilities(loaded, dev)
    assert torch.allclose(kept, loaded.predict(dev).predictive.probabilities, atol=1e-5)


def spoil_adapter(folder: Path) -> None:
    path = folder / "adapter" / "adapter_model.safetensors"
    save_file({name: 1.5 * value for name, value in load_file(path).items()}, path, metadata={"format": "pt"})


def spoil_config(folder: Path) -> None:
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(config | {"seed": 5}))


def spoil_temperature(folder: Path) -> None:
    path = folder / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"temperature": 2.0}))


def spoil_items(folder: Path) -> None:
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["task"]["dev_examples"] = 7
    path.write_text(yaml.safe_dump(config))


@pytest.mark.parametrize("spoil", [spoil_adapter, spoil_config, spoil_temperature, spoil_items])
def test_they_are_stale_where_anything_they_depend_on_is_another(spoil, copied, predicted):
    before = calibrated_on_dev(load_run(copied), 0.6).threshold
    assert not predicted
    spoil(copied)
    after = calibrated_on_dev(load_run(copied), 0.6).threshold
    assert len(predicted) == 1 and after != before
    # The new ones are kept in their place.
    assert calibrated_on_dev(load_run(copied), 0.6).threshold == pytest.approx(after)
    assert len(predicted) == 1


def test_they_are_those_of_one_number_of_draws(copied, predicted):
    loaded = load_run(copied)
    drawn, mean = (calibrated_on_dev(loaded, 0.6, samples).threshold for samples in (None, 0))
    assert len(predicted) == 1 and drawn != mean


def test_a_broken_file_and_a_folder_in_use_cost_time_alone(copied, predicted, monkeypatch):
    expected = calibrated_on_dev(load_run(copied), 0.6).threshold
    (copied / "dev_predictions.json").write_text('{"key": ')
    monkeypatch.setattr("bayeslora.runs.kept.writer_within", _in_use)
    assert calibrated_on_dev(load_run(copied), 0.6).threshold == pytest.approx(expected)
    assert len(predicted) == 1 and (copied / "dev_predictions.json").read_text() == '{"key": '


def _in_use(folder: Path):
    raise RuntimeError(f"another process is writing to {folder}")


def test_what_is_unsure_is_the_exception_in_what_the_run_writes_for_its_dev_texts(copied, monkeypatch):
    loaded = load_run(copied)
    thresholds = {measure: unsure_above(loaded, measure, 3, 0) for measure in ("mutual_information", "entropy")}
    kept = json.loads((copied / "unsure_above.json").read_text())
    assert kept["content"] == thresholds

    from bayeslora.prediction.generation import encode_prompts, generate

    dev = [item.question for item in task_items(loaded.config.task).dev]
    inputs = encode_prompts(loaded.scoring.tokenizer, dev)
    written = generate(loaded.model, inputs, 3, 0, max_new_tokens=24)
    for measure, threshold in thresholds.items():
        share = (written.values(measure)[written.mask] > threshold).float().mean()
        assert EXCEPTION / 2 < float(share) <= EXCEPTION + 0.02, measure
    # Kept: no text is written a second time.
    monkeypatch.setattr("bayeslora.runs.unsure.generate", None)
    assert unsure_above(load_run(copied), "entropy", 3, 0) == thresholds["entropy"]

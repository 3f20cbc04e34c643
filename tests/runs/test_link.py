"""The power of the length of a cloze run, chosen on items that its model has not learned from."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from test_cli import data, tiny_base  # noqa: F401

from bayeslora.prediction.length_power import choose_length_power
from bayeslora.prediction.predictive import Predictive
from bayeslora.runs import load_run
from bayeslora.runs.config_files import read_config
from bayeslora.runs.length_power import choose_link, predict_powers
from bayeslora.runs.loading import scoring_of
from bayeslora.runs.prediction import predict_items
from bayeslora.tasks import load_items
from bayeslora_cli.main import main


def test_the_right_power_is_found_and_its_temperature() -> None:
    """Labels drawn from sums over the root of the length, three times as sharp as the model says."""
    source = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 12, (3000, 4), generator=source)
    sums = -lengths * 2 + torch.randn(3000, 4, generator=source) * lengths**0.5
    labels = torch.multinomial((3 * sums / lengths**0.5).softmax(-1), 1, generator=source)[:, 0]
    scores = {power: Predictive((sums / lengths**power).log_softmax(-1)[None]) for power in (0.0, 0.5, 1.0)}
    found = choose_length_power(scores, labels)
    assert found.power == 0.5 and found.temperature == pytest.approx(1 / 3, rel=0.1)
    assert found.nll[0.5] == min(found.nll.values()) and math.isfinite(found.nll[1.0])
    with pytest.raises(ValueError, match="no power"):
        choose_length_power({}, labels)


@pytest.mark.parametrize("with_dev", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_training_chooses_it_before_and_writes_it_down(
    packed: bool,
    with_dev: bool,
    tiny_base: Path,  # noqa: F811
    data: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bayeslora.scoring.cloze.packs", lambda *_: packed)
    files = data if with_dev else data / "train.jsonl"
    content = {
        "model": {"name": str(tiny_base), "device": "cpu"},
        "task": {"name": str(files), "length_power": "auto"},
        "method": {"class_path": "BayesianLora", "init_args": {"r": 2, "last_layers": 2}},
        "train": {"max_steps": 1},
        "batch_size": 4,
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    main(["train", "--config", str(tmp_path / "config.yaml"), "--output_dir", str(tmp_path / "run")])
    run = load_run(tmp_path / "run")
    items = load_items(data / f"{'dev' if with_dev else 'train'}.jsonl")
    with run.model.disable_adapter():
        chosen = choose_link(run.config, run.model, run.scoring, items)  # type: ignore[arg-type]
    assert read_config(tmp_path / "run" / "config.yaml").task.length_power == chosen.power
    assert run.scoring.length_power == chosen.power  # type: ignore[attr-defined]
    # Several powers in one pass are each power alone, also for draws.
    found = predict_powers(run.config, run.model, run.scoring, items, (0.0, 0.75), num_samples=3)  # type: ignore[arg-type]
    for power, predictive in found.items():
        alone = scoring_of(read_config(tmp_path / "run" / "config.yaml").task, run.scoring.tokenizer, 1024)
        alone.length_power = power  # type: ignore[attr-defined]
        expected = predict_items(run.config, run.model, alone, items, num_samples=3, progress=False)
        torch.testing.assert_close(predictive.samples, expected.predictive.samples, rtol=1e-4, atol=1e-4)
    if with_dev and packed:
        assert json.loads((tmp_path / "run" / "metrics.json").read_text())["nll"] > 0
        main(
            ["train", "--config", str(tmp_path / "config.yaml"), "--output_dir", str(tmp_path / "run"), "--resume=true"]
        )

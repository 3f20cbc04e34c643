"""A run that was trained on a device that is not here, and a device that is asked for and is not here."""

import logging
from pathlib import Path

import pytest
import torch
import yaml
from test_cli import config, data, fails, items, tiny_base, write_items  # noqa: F401

from bayeslora import load_run
from bayeslora.system.devices import choose_device, is_here
from bayeslora_cli.main import main


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_which_devices_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("auto") == torch.device("cpu")
    assert [is_here(name) for name in ("cpu", "cuda", "mps", "meta", "gpu")] == [True, False, False, False, False]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [is_here(name) for name in ("cuda", "cuda:1", "cuda:2")] == [True, True, False]
    assert choose_device("auto") == torch.device("cuda")
    with pytest.raises(ValueError, match=r"no device 'cuda:2' here; this machine has: cpu, cuda"):
        choose_device("cuda:2")


def test_a_run_that_was_trained_elsewhere(config, tmp_path, capsys, caplog):  # noqa: F811
    run, output = tmp_path / "run", tmp_path / "out.jsonl"
    assert "no device 'cuda' here" in fails(
        capsys, "train", "--config", config, "--output_dir", run, "--model.device", "cuda"
    )
    main(["train", "--config", str(config), "--output_dir", str(run)])
    stored = yaml.safe_load((run / "config.yaml").read_text())
    stored["model"]["device"] = "cuda:3"
    (run / "config.yaml").write_text(yaml.safe_dump(stored))
    with caplog.at_level(logging.WARNING, "bayeslora"):
        loaded = load_run(run)
    assert "trained on 'cuda:3', which is not here; it is loaded on cpu" in caplog.text
    assert next(loaded.model.parameters()).device.type == "cpu"
    caplog.clear()
    asked = ["predict", str(run), "--input", str(write_items(tmp_path / "in.jsonl", items(2))), "--output", str(output)]
    main([*asked, "--device", "cpu"])
    assert len(output.read_text().splitlines()) == 2 and "not here" not in caplog.text
    for arguments in (
        [*asked[:-1], tmp_path / "other.jsonl"],
        ["evaluate", run],
        ["generate", run, "--prompt", "a"],
        ["serve", run, "--port", "0"],
        ["export", run, "--output_dir", tmp_path / "export"],
        ["diagnose", run],
        ["lm-eval", run, "--tasks", "arc_easy"],
    ):
        assert "no device 'cuda' here" in fails(capsys, *arguments, "--device", "cuda"), arguments
    assert Path(run / "config.yaml").read_text() == yaml.safe_dump(stored)

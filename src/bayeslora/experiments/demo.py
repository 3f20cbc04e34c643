"""The main job on a small scale: plain LoRA and Bayesian-LoRA on the same few items, compared on held-out ones."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from bayeslora.methods import BayesianLora, Lora, Method
from bayeslora.metrics.reliability_diagram import reliability_diagram
from bayeslora.runs import Prediction, Trained, train, write_evaluation
from bayeslora.runs.config import ModelConfig, RunConfig, TaskConfig, TrainConfig
from bayeslora.system.files import atomic_file, check_absent, write_json
from bayeslora.system.folders import only_writer

__all__ = ["demo", "demo_config"]

_COLUMNS = ("accuracy", "nll", "ece", "brier", "train_seconds", "trainable_parameters")
_SAMPLES = 6


def demo_config(method: Method, seed: int = 0) -> RunConfig:
    """ARC-Easy with SmolLM2-135M-Instruct by cloze scoring: few items and many epochs, so that plain LoRA overfits."""
    return RunConfig(
        # In the type that every CPU has, so that it gives what the README shows.
        model=ModelConfig(name="offline:smollm2", dtype="float32"),
        task=TaskConfig(name="arc_easy", scoring="cloze", train_examples=80, test_examples=200),
        method=method,
        train=TrainConfig(epochs=8, batch_size=8, learning_rate=3e-3, logging_steps=10),
        seed=seed,
        num_samples=_SAMPLES,
    )


def demo(output_dir: str | Path, seed: int = 0, overwrite: bool = False) -> str:
    """Train both methods, evaluate them on the same test items, and write runs, table and picture to `output_dir`.

    Returns:
        The table as Markdown, and where the picture is.

    Raises:
        FileExistsError: A demo or its runs are there, and not `overwrite`.
        RuntimeError: Another process writes to `output_dir`.
    """
    output = Path(output_dir)
    with only_writer(output):
        check_absent(output / "results.json", overwrite)
        return _demo(output, seed, overwrite)


def _demo(output: Path, seed: int, overwrite: bool) -> str:
    started = time.perf_counter()
    rows: dict[str, dict[str, Any]] = {}
    curves: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    trained: Trained | None = None
    for method in (Lora(last_layers=4), BayesianLora(last_layers=4)):
        config = demo_config(method, seed)
        cache = trained.trunk_cache if trained is not None else None
        trained = train(config, output / method.name, overwrite=overwrite, evaluate_dev=False, trunk_cache=cache)
        for title, num_samples in _readings(method):
            prediction = trained.predict(trained.splits.test, num_samples)
            rows[title] = trained.metrics | {"split": "test"} | prediction.metrics()
            curves[title] = _curve(prediction)
        write_evaluation(output / method.name, prediction, rows[title])
    reliability_diagram(curves, output / "reliability.png", title=f"ARC-Easy, {len(prediction.items)} test items")
    table = _table(rows)
    with atomic_file(output / "table.md") as aside:
        aside.write_text(table + "\n", encoding="utf-8")
    seconds = round(time.perf_counter() - started, 1)
    write_json(output / "results.json", {"seconds": seconds, "torch": torch.__version__, "rows": rows})
    return f"\n{table}\n\n{seconds:.0f} s in all. Picture: {output / 'reliability.png'}"


def _readings(method: Method) -> list[tuple[str, int]]:
    """Names and numbers of samples under which a trained method is evaluated."""
    return (
        [("LoRA", 0)]
        if method.name == "lora"
        else [("Bayesian-LoRA, mean", 0), (f"Bayesian-LoRA, {_SAMPLES} samples", _SAMPLES)]
    )


def _curve(prediction: Prediction) -> tuple[torch.Tensor, torch.Tensor]:
    return prediction.predictive.probabilities, torch.tensor([item.label for item in prediction.items])


def _table(rows: dict[str, dict[str, Any]]) -> str:
    lines = [f"| | {' | '.join(_COLUMNS)} |", f"|---|{'---|' * len(_COLUMNS)}"]
    for title, row in rows.items():
        cells = [f"{row[name]:.3f}" if isinstance(row[name], float) else f"{row[name]:,}" for name in _COLUMNS]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)

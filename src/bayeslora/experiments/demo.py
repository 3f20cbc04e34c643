"""The main job on a small scale: a comparison of a few rows on few items, at rates that were chosen before."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from bayeslora.experiments.comparison.config import AdapterConfig, CompareConfig, ProtocolConfig, RowConfig
from bayeslora.experiments.comparison.report.content import build_report
from bayeslora.experiments.comparison.report.page import write_pages
from bayeslora.experiments.comparison.report.terminal import scores_text
from bayeslora.experiments.comparison.runner import compare
from bayeslora.methods import BayesianLora, Lora
from bayeslora.methods.bayesian_head import BayesianHead
from bayeslora.runs.config import ModelConfig, TaskConfig, TrainConfig, describe
from bayeslora.system.folders import only_writer


def demo_config(seed: int = 0) -> CompareConfig:
    """ARC-Easy with SmolLM2-135M-Instruct, each row at the rate that dev chose (studies/methods/demo)."""
    return CompareConfig(
        # In the type that every CPU has, so that it gives what the README shows.
        model=ModelConfig(name="offline:smollm2", dtype="float32"),
        tasks={
            "arc_easy": TaskConfig(
                name="arc_easy", scoring="cloze", train_examples=80, dev_examples=80, test_examples=200
            )
        },
        adapter=AdapterConfig(last_layers=4),
        rows={
            "lora": RowConfig(Lora(), learning_rates=[3e-3], temperature=True),
            "bayesian_lora": RowConfig(BayesianLora(), learning_rates=[1e-2], temperature=True, controls=["one_pass"]),
            "bayesian_head": RowConfig(BayesianHead()),
        },
        train=TrainConfig(epochs=4, batch_size=8),
        protocol=ProtocolConfig(choose_epochs=False),
        seeds=[seed],
        num_samples=6,
        cost_examples=8,
    )


def demo(output_dir: str | Path, seed: int = 0, overwrite: bool = False) -> str:
    """Compare the rows of `demo_config` as `bayeslora compare` does; one that was killed goes on where it stopped.

    Args:
        output_dir: Folder for results, report, pictures and runs.
        seed: Of initialisation, data order and draws.
        overwrite: Begin anew where there is a demo.

    Returns:
        The scores as tables, and where the report is.

    Raises:
        ValueError: The folder holds another comparison, such as a demo with another seed.
        RuntimeError: Another process writes to `output_dir`.
    """
    started, output, config = time.perf_counter(), Path(output_dir), demo_config(seed)
    if overwrite:
        with only_writer(output):
            (output / "results.jsonl").unlink(missing_ok=True)
            shutil.rmtree(output / "runs", ignore_errors=True)
    report = build_report(compare(config, output, describe(config)))
    page = write_pages(report, output)
    return f"{scores_text(report)}\n\n{time.perf_counter() - started:.0f} s in all; report and pictures: {page}"

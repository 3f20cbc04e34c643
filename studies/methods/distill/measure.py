"""An ensemble and draws of a posterior as teachers, their students, and plain LoRA: losses and seconds.

OMP_NUM_THREADS=1 python studies/methods/distill/measure.py FOLDER    (for the runs)

Writes results.json. What is in FOLDER is not trained again.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bayeslora.methods import BayesianLora, Lora, Method
from bayeslora.methods.ensemble import DeepEnsemble
from bayeslora.metrics import summary
from bayeslora.runs import distill, load_run, task_items, train
from bayeslora.runs.config import ModelConfig, RunConfig, TaskConfig, TrainConfig
from bayeslora.runs.run import Run

RESULTS = Path(__file__).with_name("results.json")
SEEDS, LABELLED = (0,), 200
TEACHERS: dict[str, Method] = {"ensemble": DeepEnsemble(members=3), "posterior": BayesianLora()}
WHOLE = TaskConfig(name="sst2", scoring="classification", source="offline")


def config(method: Method, seed: int) -> RunConfig:
    return RunConfig(
        model=ModelConfig(name="offline:minilm"),
        task=replace(WHOLE, train_examples=LABELLED),
        method=method,
        train=TrainConfig(epochs=10, learning_rate=1e-3, arguments={"disable_tqdm": True}),
        seed=seed,
        num_samples=10,
        temperature_scaling=True,
        batch_size=32,
    )


def unlabelled(folder: Path) -> Path:
    """The training items that are not among the labelled ones, without their labels."""
    known = {item.id for item in task_items(replace(WHOLE, train_examples=LABELLED)).train}
    rest = [item for item in task_items(WHOLE).train if item.id not in known]
    path = folder / "unlabelled.jsonl"
    rows = [{"id": item.id, "question": item.question, "choices": item.choices} for item in rest]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(run: Run, num_samples: int | None = None) -> dict[str, float]:
    test = task_items(run.config.task).test
    found = run.predict(test, num_samples, progress=False)
    scores = summary(found.predictive.probabilities, torch.tensor([item.label for item in test]))
    costs = {"train_seconds": run.metrics["train_seconds"], "predict_seconds": round(found.seconds, 2)}
    if "teacher" in run.metrics:
        costs["teacher_seconds"] = run.metrics["teacher"]["predict_seconds"]
    return {name: round(float(scores[name]), 4) for name in ("accuracy", "nll", "ece")} | costs


def trained(folder: Path, make: Any) -> Run:
    return load_run(folder) if (folder / "metrics.json").is_file() else make(folder)


def of_seed(folder: Path, seed: int, more: Path) -> dict[str, dict[str, float]]:
    plain = trained(folder / f"lora-{seed}", lambda out: train(config(Lora(), seed), out))
    found = {"lora": read(plain)}
    for name, method in TEACHERS.items():
        teacher = trained(folder / f"{name}-{seed}", lambda out, of=method: train(config(of, seed), out))
        found[name] = read(teacher)
        if name == "posterior":
            found["posterior, mean"] = read(teacher, 0)
        for title, chosen in (("student", {}), ("student, unlabelled too", {"unlabelled": more})):
            place = folder / f"{name}-{title.replace(', ', '-').replace(' ', '-')}-{seed}"
            of = folder / f"{name}-{seed}"
            student = trained(place, lambda out, chosen=chosen, of=of: distill(of, out, num_samples=10, **chosen))
            found[f"{name}, {title}"] = read(student)
    return found


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    more = unlabelled(folder)
    results: dict[str, Any] = {"items": {"labelled": LABELLED, "unlabelled": len(more.read_text().splitlines())}}
    results["items"]["test"] = len(task_items(WHOLE).test)
    seeds: dict[int, Any] = {}
    for seed in SEEDS:
        seeds[seed] = of_seed(folder, seed, more)
        RESULTS.write_text(json.dumps(results | {"seeds": seeds}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""What rows of the fair study cost and how good they are, with more or fewer draws: readings.jsonl and seconds.json.

OMP_NUM_THREADS=1 python -m studies.methods.price.measure RUNS FOLDER    (RUNS: those of ../fair; FOLDER: for students)

What is there is not measured again. Rows without draws are taken from the results of ../fair, on the same test items.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayeslora.experiments.comparison.results import Results
from bayeslora.methods.bayesian_head import BayesianHead
from bayeslora.metrics import summary
from bayeslora.prediction.predictive import Predictive
from bayeslora.prediction.temperature import fit_temperature
from bayeslora.runs import Run, distill, load_run, task_items, train
from bayeslora.runs.building import open_trunk_cache
from studies.cost.timing import least

HERE = Path(__file__).parent
READINGS, SECONDS = HERE / "readings.jsonl", HERE / "seconds.json"
FAIR = HERE.parent / "fair" / "results.jsonl"
TASK, TEST, SEEDS, DRAWS = "arc_easy", 600, (0, 1, 2), (1, 2, 4, 8, 16, 32)
TAKEN = ("base", "lora", "bayesian_lora, one pass", "gauss_newton", "bayesian_head")
TIMED, ROUNDS = 24, 3

Parts = dict[str, Predictive]
"""Of dev and of the first `TEST` test items, without a temperature."""


def described(found: dict[str, Predictive], labels: Tensor) -> dict[str, dict[str, float]]:
    rows = {name: summary(predictive.probabilities, labels) for name, predictive in found.items()}
    return {name: {key: round(float(row[key]), 5) for key in ("accuracy", "nll", "ece")} for name, row in rows.items()}


def scores(parts: Parts, labels: dict[str, Tensor]) -> dict[str, Any]:
    """With and without a temperature from dev."""
    temperature = fit_temperature(parts["dev"], labels["dev"], warns=False).value
    found = {"at_1": parts["test"], "with_temperature": parts["test"].tempered(temperature)}
    return {"temperature": temperature} | described(found, labels["test"])


def taken(results: Results, labels: dict[str, Tensor]) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Scores from the fair study, and of its LoRAs as one ensemble."""

    def read(name: str, seed: int, split: str) -> Predictive:
        rate = results.cells("final", TASK, name)[0].learning_rate
        cell = results.find(TASK, name, seed, rate, "final")
        assert cell is not None
        found = torch.tensor(cell.predictions[split].normalised()).log().unsqueeze(0)
        return Predictive(found[:, : len(labels[split])])

    for name in TAKEN:
        for seed in SEEDS:
            found = {"at_1": name, "with_temperature": f"{name} + temperature"}
            yield (
                name,
                seed,
                described({key: read(title, seed, "test") for key, title in found.items()}, labels["test"]),
            )
    members = {split: [read("lora", seed, split).samples for seed in SEEDS] for split in labels}
    yield (
        "ensemble of the loras",
        0,
        scores({split: Predictive(torch.cat(each)) for split, each in members.items()}, labels),
    )


def predicted(run: Run, num_samples: int | None = None) -> Parts:
    run = replace(run, temperature=1.0, trunk_cache=open_trunk_cache(run.config, run.model))
    items = task_items(run.config.task)
    parts = {"dev": items.dev, "test": items.test[:TEST]}
    return {name: run.predict(part, num_samples, progress=False).predictive for name, part in parts.items()}


def draws(folder: Path, seed: int) -> Iterator[tuple[str, int, Parts]]:
    found = predicted(load_run(folder), max(DRAWS))
    for number in DRAWS:
        yield f"{number} draws", seed, {name: Predictive(part.samples[:number]) for name, part in found.items()}


def student(folder: Path, out: Path, seed: int) -> Iterator[tuple[str, int, Parts]]:
    if not (out / "metrics.json").is_file():
        distill(folder, out, num_samples=10)
    yield "student of ten draws", seed, predicted(load_run(out))


def likelihood(folder: Path, out: Path) -> Iterator[tuple[str, int, Parts]]:
    if not (out / "metrics.json").is_file():
        config = load_run(folder).config
        train(replace(config, method=BayesianHead(reads="likelihood"), seed=0), out)
    yield "likelihood readout", 0, predicted(load_run(out))


def timed(place: Callable[[str, int], Path], out: Path) -> dict[str, float]:
    """CPU seconds of an item by all but heads, whose features are kept on disk (../readout/seconds.json has those)."""

    def reading(folders: list[Path], num_samples: int | None = None) -> Callable[[], Any]:
        runs = [load_run(folder).without_cache() for folder in folders]
        items = task_items(runs[0].config.task).test[:TIMED]
        return lambda: [run.predict(items, num_samples, progress=False).predictive.entropy for run in runs]

    bayesian = [place("bayesian_lora", 0)]
    found = least(
        {
            "base": reading([place("base", 0)]),
            "lora": reading([place("lora", 0)]),
            "bayesian_lora, one pass": reading(bayesian, 0),
            **{f"{number} draws": reading(bayesian, number) for number in DRAWS},
            "gauss_newton": reading([place("gauss_newton", 0)]),
            "student of ten draws": reading([out / "student-0"]),
            "ensemble of the loras": reading([place("lora", seed) for seed in SEEDS]),
        },
        ROUNDS,
        TIMED,
    )
    return {name: round(value, 4) for name, value in found.items()}


def read_rows() -> dict[tuple[str, int], dict[str, Any]]:
    """By row and seed."""
    lines = READINGS.read_text().splitlines() if READINGS.exists() else []
    return {(each["row"], each["seed"]): each for each in map(json.loads, lines)}


def main(runs: Path, out: Path) -> None:
    results = Results.read(FAIR)

    def place(name: str, seed: int) -> Path:
        rate = results.cells("final", TASK, name)[0].learning_rate
        return runs / f"{TASK}-{name}-{rate:g}-{seed}"

    def save(rows: Iterable[tuple[str, int, dict[str, Any]]]) -> None:
        lines = [json.dumps({"row": name, "seed": seed} | found) + "\n" for name, seed, found in rows]
        with READINGS.open("a") as file:
            file.writelines(lines)

    def scored(rows: Iterator[tuple[str, int, Parts]]) -> Iterator[tuple[str, int, dict[str, Any]]]:
        return ((name, seed, scores(parts, labels)) for name, seed, parts in rows)

    labels = {
        split: torch.tensor(results.items(TASK, split).labels)[: TEST if split == "test" else None]
        for split in ("dev", "test")
    }
    done = read_rows()
    if ("base", 0) not in done:
        save(taken(results, labels))
    if ("likelihood readout", 0) not in done:
        save(scored(likelihood(place("bayesian_head", 0), out / "likelihood")))
    for seed in SEEDS:
        folder = place("bayesian_lora", seed)
        if ("1 draws", seed) not in done:
            save(scored(draws(folder, seed)))
        if ("student of ten draws", seed) not in done:
            save(scored(student(folder, out / f"student-{seed}", seed)))
    if not SECONDS.exists():
        SECONDS.write_text(json.dumps(timed(place, out), indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*map(Path, sys.argv[1:]))

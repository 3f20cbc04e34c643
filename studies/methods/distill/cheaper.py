"""Students of ten draws that cost less: fewer draws of the teacher, fewer passes over the items; three seeds.

OMP_NUM_THREADS=1 python -m studies.methods.distill.cheaper FOLDER    (for the runs; may be that of measure.py)

Writes cheaper.json after every seed. What is in FOLDER is not trained again.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean

from bayeslora.methods import BayesianLora, Lora
from bayeslora.runs import distill, train
from bayeslora.runs.run import Run
from studies.methods.distill.measure import config, read, trained

CPU = "processor_seconds.txt"
RESULTS = Path(__file__).with_name("cheaper.json")
SEEDS = (0, 1, 2)
STUDENTS = ((10, 5.0), (4, 5.0), (2, 5.0), (4, 2.5), (2, 2.5))
"""Draws of the teacher, and passes over the items of the student, where the teacher took ten."""


def of_seed(folder: Path, seed: int) -> dict[str, dict[str, float]]:
    of = folder / f"posterior-{seed}"
    teacher = timed(of, lambda: train(config(BayesianLora(), seed), of))
    found = {f"{draws} draws": read(teacher, draws) for draws in (10, 4, 2)} | {"mean": read(teacher, 0)}
    for draws, epochs in STUDENTS:
        place = folder / f"cheaper-{draws}-{epochs:g}-{seed}"
        student = timed(place, partial(distill, of, place, num_samples=draws, epochs=epochs))
        found[f"student of {draws} draws, {epochs:g} epochs"] = read(student) | {"share": share(place, of)}
    for epochs in (10.0, 5.0):
        plain, place = config(Lora(), seed), folder / f"untaught-{epochs:g}-{seed}"
        plain = replace(plain, train=replace(plain.train, epochs=epochs))
        untaught = timed(place, partial(train, plain, place))
        found[f"LoRA on the labels, {epochs:g} epochs"] = read(untaught) | {"share": share(place, of)}
    return found


def timed(place: Path, make: Callable[[], Run]) -> Run:
    """The run in `place`, with the processor time of its making in a file: others work on the machine."""
    started = time.process_time()
    run = trained(place, lambda _: make())
    if not (place / CPU).exists():
        (place / CPU).write_text(f"{time.process_time() - started:.2f}")
    return run


def share(place: Path, of: Path) -> float:
    """The processor time of a training, the teacher's predictions among it, over that of the teacher's."""
    seconds, whole = (float((folder / CPU).read_text()) for folder in (place, of))
    return round(seconds / whole, 4)


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    seeds = {}
    for seed in SEEDS:
        seeds[seed] = of_seed(folder, seed)
        rows = {row: [found[row] for found in seeds.values()] for row in seeds[seed]}
        means = {
            row: {name: round(mean(one[name] for one in found), 4) for name in found[0]} for row, found in rows.items()
        }
        RESULTS.write_text(json.dumps({"means": means, "seeds": seeds}, indent=1) + "\n")


if __name__ == "__main__":
    main()

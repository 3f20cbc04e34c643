"""`make campaign`: everything once, in under 30 minutes on 2 cores; exit status 1 if anything was not clear."""

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from campaign.calls import call
from campaign.config_errors import config_errors
from campaign.damaged_runs import damaged_runs
from campaign.decisions import decision_faults
from campaign.full_disk import full_disk
from campaign.item_files import item_files
from campaign.kills import kills
from campaign.outcome import Attempt, table
from campaign.requests import wrong_requests
from campaign.world import make_world

COUNTS = {
    "kill": 100,
    "config": 170,
    "item file": 120,
    "damaged run": 100,
    "full disk": 40,
    "decision": 50,
    "request": 60,
}
"""Attempts by area, those that take longest first; 500 of them are bad inputs."""


def attempts_of(area: str, seed: int, share: float) -> list[Attempt]:
    """All attempts of an area, `share` of their number, in a world of its own."""
    count, source = max(1, round(share * COUNTS[area])), random.Random(f"{area} {seed}")
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(Path(folder))
        run = world.folder / "run"
        done = call("train", "--config", world.folder / "config.yaml", "--output_dir", run)
        if done.status:
            raise RuntimeError(f"the config that all others are made from fails: {done.said}")
        kinds = {
            "kill": lambda: kills(world, count, source),
            "config": lambda: config_errors(world, count, source),
            "item file": lambda: item_files(world, run, count, source),
            "damaged run": lambda: damaged_runs(world, run, count, source),
            "full disk": lambda: full_disk(world, run, count, source),
            "decision": lambda: decision_faults(world, count, source),
            "request": lambda: wrong_requests(world, run, count, source),
        }
        return list(kinds[area]())


def campaign(seed: int, areas: list[str], share: float, workers: int) -> Iterator[list[Attempt]]:
    """The attempts of each area as it ends, each area in a process of its own."""
    chosen = [area for area in COUNTS if area in areas]
    with multiprocessing.get_context("fork").Pool(workers, maxtasksperchild=1) as pool:
        yield from pool.imap_unordered(partial(attempts_of, seed=seed, share=share), chosen)


def main() -> None:
    """Print what was not clear as it comes, and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--areas", nargs="*", default=list(COUNTS), choices=list(COUNTS))
    parser.add_argument("--share", type=float, default=1.0, help="Of the number of attempts.")
    parser.add_argument("--workers", type=int, default=2, help="Areas that are tried at the same time.")
    parser.add_argument("--output", type=Path, help="JSON file for the counts and all that was not clear.")
    options = parser.parse_args()
    import bayeslora.runs  # noqa: F401  # Once, for all children.

    started, attempts = time.monotonic(), list[Attempt]()
    for found in campaign(options.seed, options.areas, options.share, options.workers):
        attempts += found
        print(f"{time.monotonic() - started:.0f} s: {found[0].area}, {len(found)} tried", flush=True)
        for attempt in found:
            if attempt.kind != "clear":
                print(f"{attempt.kind}: {attempt.area}, {attempt.what}\n    {attempt.said[-800:]}", flush=True)
    seconds = time.monotonic() - started
    print(table(attempts))
    print(f"{seconds:.0f} s, seed {options.seed}")
    wrong = [vars(attempt) for attempt in attempts if attempt.kind != "clear"]
    if options.output:
        text = {
            "command": " ".join(["python -m campaign", *sys.argv[1:]]),
            "tried": len(attempts),
            "seconds": round(seconds),
            "table": table(attempts),
        }
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(text | {"not clear": wrong}, indent=1) + "\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()

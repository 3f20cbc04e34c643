"""`make campaign`: everything once, in under 30 minutes on 2 cores; exit status 1 if anything was not clear."""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from campaign.calls import call
from campaign.config_errors import config_errors
from campaign.damaged_runs import damaged_runs
from campaign.full_disk import full_disk
from campaign.item_files import item_files
from campaign.kills import kills
from campaign.outcome import Attempt, table
from campaign.requests import wrong_requests
from campaign.world import make_world

COUNTS = {"config": 200, "item file": 120, "damaged run": 120, "request": 60, "full disk": 40, "kill": 100}


def campaign(folder: Path, seed: int, areas: list[str], share: float) -> Iterator[Attempt]:
    """All attempts of `areas`, `share` of their numbers."""
    world = make_world(folder)
    run = folder / "run"
    done = call("train", "--config", folder / "config.yaml", "--output_dir", run)
    if done.status:
        raise RuntimeError(f"the config that all others are made from fails: {done.said}")
    counts = {area: max(1, round(share * count)) for area, count in COUNTS.items()}
    parts = {
        "config": lambda source: config_errors(world, counts["config"], source),
        "item file": lambda source: item_files(world, run, counts["item file"], source),
        "damaged run": lambda source: damaged_runs(world, run, counts["damaged run"], source),
        "full disk": lambda source: full_disk(world, run, counts["full disk"], source),
        "kill": lambda source: kills(world, counts["kill"], source),
        # Last: its event loop would be copied into the children.
        "request": lambda source: wrong_requests(run, counts["request"], source),
    }
    for area, attempts in parts.items():
        if area in areas:
            yield from attempts(random.Random(f"{area} {seed}"))


def main() -> None:
    """Print what was not clear as it comes, and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--areas", nargs="*", default=list(COUNTS), choices=list(COUNTS))
    parser.add_argument("--share", type=float, default=1.0, help="Of the number of attempts.")
    parser.add_argument("--output", type=Path, help="JSON file for the counts and all that was not clear.")
    options = parser.parse_args()
    import bayeslora.runs  # noqa: F401  # Once, for all children.

    started, attempts = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        for attempt in campaign(Path(folder), options.seed, options.areas, options.share):
            attempts.append(attempt)
            if attempt.kind != "clear":
                print(f"{attempt.kind}: {attempt.area}, {attempt.what}\n    {attempt.said[-800:]}", flush=True)
    print(table(attempts))
    print(f"{time.monotonic() - started:.0f} s, seed {options.seed}")
    wrong = [vars(attempt) for attempt in attempts if attempt.kind != "clear"]
    if options.output:
        text = {
            "command": " ".join(["python -m campaign", *sys.argv[1:]]),
            "tried": len(attempts),
            "table": table(attempts),
        }
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(text | {"not clear": wrong}, indent=1) + "\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()

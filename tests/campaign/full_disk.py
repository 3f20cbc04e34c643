"""A disk that is full from a chosen change of files on: a clear error, and what was there is whole."""

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from campaign.calls import call
from campaign.outcome import Attempt, judged
from campaign.world import World

_COMMANDS = ("train", "evaluate", "predict", "export", "compare")


def full_disk(world: World, run: Path, count: int, source: random.Random) -> Iterator[Attempt]:
    """`count` calls over all commands that write; python's own writes fail, those of compiled libraries do not."""
    changes = {}
    for kind in _COMMANDS:
        folder = world.folder / f"whole-{kind}"
        changes[kind] = call(*_command(kind, world, run, folder), folder=folder).changes
    for number in range(count):
        kind = source.choice(_COMMANDS)
        folder = world.folder / f"full-{number}"
        at = source.randrange(1, changes[kind] + 1)
        done = call(*_command(kind, world, run, folder), folder=folder, full_from=at)
        what = f"{kind} from change {at} of {changes[kind]} ({number})"
        yield _broken(kind, folder, what) or _judged(what, done.status, done.said, folder)
        shutil.rmtree(folder, ignore_errors=True)


def _command(kind: str, world: World, run: Path, folder: Path) -> list[object]:
    if kind == "train":
        return ["train", "--config", world.folder / "config.yaml", "--output_dir", folder]
    if kind == "compare":
        return ["compare", "--config", world.folder / "comparison.yaml", "--output_dir", folder]
    if kind == "export":
        return ["export", run, "--format", "mean", "--output_dir", folder]
    if kind == "evaluate":
        shutil.copytree(run, folder)
        return ["evaluate", folder]
    return ["predict", run, "--input", world.folder / "new.jsonl", "--output", f"{folder}.jsonl"]


def _judged(what: str, status: int, said: str, folder: Path) -> Attempt:
    # Changes that only remove need no space, so a call may end well.
    if status == 0:
        return Attempt("full disk", what, "clear", "ended well")
    return judged("full disk", what, status, said, [(folder.name,)])


def _broken(kind: str, folder: Path, what: str) -> Attempt | None:
    """Where what was there before is no longer whole."""
    if kind != "evaluate":
        return None
    try:
        json.loads((folder / "metrics.json").read_text())
    except (OSError, ValueError) as error:
        return Attempt("full disk", what, "lost", str(error))
    return None

"""Where an evaluation is written, and what must not be replaced by it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SAME = ("method", "model", "seed", "scoring", "task", "split")


def check_evaluation(target: Path, run: Path, metrics: Mapping[str, Any], overwrite: bool) -> None:
    """Whether an evaluation may be written to `target`: one of the same run, task and split is renewed.

    Args:
        target: The folder.
        run: That of the run.
        metrics: With what identifies the evaluation: method, model, seed, scoring, task and split.
        overwrite: Whether another evaluation may be replaced.

    Raises:
        FileExistsError: Another run is there, or the evaluation of another run, task or split.
    """
    own = target.resolve() == run.resolve()
    if not own and (target / "adapter").is_dir():
        raise FileExistsError(f"{target} is the folder of another run, whose metrics.json belongs to it; name another.")
    there = target / "metrics.json"
    evaluated = not own or any((target / name).exists() for name in ("predictions.jsonl", "texts.jsonl"))
    if overwrite or not evaluated or not there.is_file():
        return
    present = json.loads(there.read_text(encoding="utf-8"))
    other = [name for name in _SAME if not isinstance(present, dict) or present.get(name) != metrics.get(name)]
    if other:
        said = ", ".join(f"{name} {present.get(name)!r}" for name in other) if isinstance(present, dict) else "no run"
        raise FileExistsError(
            f"{target} holds another evaluation ({said}), which is left alone: name another --output_dir, or replace "
            "it by --overwrite (in Python: overwrite=True)."
        )

"""The runs of a procedure that may have been interrupted: one that has ended is loaded, any other one is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from peft import PeftModel

from bayeslora.runs.beginning import check_finished
from bayeslora.runs.building import open_trunk_cache
from bayeslora.runs.config import RunConfig
from bayeslora.runs.finished import load_run
from bayeslora.runs.run import Run
from bayeslora.runs.training import train
from bayeslora.scoring.trunk_cache import TrunkCache


def train_or_load(
    config: RunConfig,
    folder: Path,
    trunk_cache: TrunkCache | None = None,
    *,
    evaluate_dev: bool = False,
    prepare: Callable[[PeftModel], None] | None = None,
    apart_from: Iterable[str] = (),
) -> Run:
    """The run in `folder`, which goes on from a checkpoint where there is one.

    Args:
        config: The run.
        folder: Its folder.
        trunk_cache: That of another run on the same base model and layers, to read and add to.
        evaluate_dev: As for `train`.
        prepare: As for `train`.
        apart_from: Options in which a finished run may be another one.

    Raises:
        ValueError: The folder holds a run of another config.
    """
    if not (folder / "metrics.json").is_file():
        return train(config, folder, resume=True, evaluate_dev=evaluate_dev, trunk_cache=trunk_cache, prepare=prepare)
    check_finished(config, folder, apart_from)
    run = load_run(folder, device=config.model.device)
    if config.method.adapts:
        run.trunk_cache = open_trunk_cache(config, run.model, trunk_cache)
    return run

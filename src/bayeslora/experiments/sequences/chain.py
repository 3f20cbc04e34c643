"""RAC-LoRA (arXiv 2410.08305): a chain of blocks, each trained on the model with all earlier ones merged in."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from bayeslora.adapters.files import require_supplied
from bayeslora.adapters.from_lora import adapter_folder
from bayeslora.deploy.export import FORMATS
from bayeslora.deploy.export.base import ExportRequest
from bayeslora.experiments.sequences.config import ChainConfig
from bayeslora.experiments.sequences.sketch import draw_sketch
from bayeslora.report.text import markdown_table, plus_minus
from bayeslora.runs import Prediction, Run, load_run, task_items, write_evaluation
from bayeslora.runs.config import describe
from bayeslora.runs.differences import at_defaults, completed, differences, same_meaning
from bayeslora.runs.going_on import train_or_load
from bayeslora.runs.loading import merge_adapters
from bayeslora.scoring.trunk_cache import TrunkCache
from bayeslora.system.console import headlines, progress
from bayeslora.system.files import write_file, write_json
from bayeslora.system.folders import only_writer
from bayeslora.system.reading import read_json

_STATE = "chain.json"
_SCORES = ("accuracy", "nll", "ece", "brier", "num_examples", "num_samples")


def run_chain(config: ChainConfig, output_dir: str | Path) -> list[dict[str, Any]]:
    """Train the blocks of a chain and merge them.

        W_(k+1) = W_k + (alpha / r) B_k A_k,    one of B_k and A_k Gaussian and frozen, the other trained from zero

    Each block is a run folder `block<k>` of its own, with the blocks before it in `model.merge`: `bayeslora evaluate`
    takes it, and its predictions.jsonl are those on the test split. `chain.json` gets one record a block, so that a
    chain that was killed goes on at the block that was cut off, and in it at its last checkpoint. At the end `merged/`
    is the whole chain in one model, and `chain.md` the table of the blocks.

    Only an abstract and the authors' small example were at hand: the scale of the sketch and the optimizer's restart in
    each block were chosen here.

    Args:
        config: The chain.
        output_dir: Its folder.

    Returns:
        One record a block: its number and folder, what its training took, and for each split its scores (`test`,
        `dev`) and those of the posterior mean alone (`test_mean`).

    Raises:
        ValueError: The folder holds a chain of another config; more blocks may be added.
        RuntimeError: Another process writes to it.
    """
    output = Path(output_dir)
    with only_writer(output):
        return _run_chain(config, output)


def _run_chain(config: ChainConfig, output: Path) -> list[dict[str, Any]]:
    described = describe(config)
    records = _records(output / _STATE, described, at_defaults(config))
    cache: TrunkCache | None = None
    with progress("chain", config.blocks, "blocks", done=len(records)) as line, headlines():
        for block in range(len(records), config.blocks):
            started = time.perf_counter()
            run = _trained(config, output, block, cache)
            cache = run.trunk_cache
            records.append(_record(run, output, block))
            write_json(output / _STATE, {"config": described, "blocks": records})
            line.ended(f"block {block}: {_line(records[-1])}", time.perf_counter() - started)
    _write_merged(output, len(records))
    write_file(output / "chain.md", _table(records))
    return records


def load_chain(model: nn.Module, folder: str | Path, blocks: int | None = None) -> nn.Module:
    """Add the blocks of a chain to the weights of `model`, in place.

    For the posterior of the last block instead of its mean: `bayeslora.load_run(folder / "block<k>")`.

    Args:
        model: The base model that the chain started from.
        folder: The chain's.
        blocks: How many, from the first on; default: all.

    Raises:
        FileNotFoundError: There is no chain, or a block is missing.
        ValueError: Weights that the model's checkpoint does not hold are in no block.
    """
    folder = Path(folder)
    state = _read(folder / _STATE)
    if state is None:
        raise FileNotFoundError(f"{folder} is no chain: {_STATE} is missing. Expected the output of `bayeslora chain`.")
    runs = [folder / record["folder"] for record in state["blocks"][:blocks]]
    require_supplied(model, map(adapter_folder, runs))
    return merge_adapters(model, runs)


def _trained(config: ChainConfig, output: Path, block: int, cache: TrunkCache | None) -> Run:
    """The run of a block, trained or, where its folder is finished already, loaded."""
    folder, run = output / f"block{block}", config.block(block)
    prepare = None
    if config.sketch is not None:
        number = block if config.redraw else 0
        prepare = partial(draw_sketch, side=config.sketch, seed=config.seed, number=number)
    return train_or_load(run, folder, cache, evaluate_dev=True, prepare=prepare)


def _record(run: Run, output: Path, block: int) -> dict[str, Any]:
    """What chain.json keeps of a block; its test predictions are written to its folder."""
    metrics, folder = run.metrics, f"block{block}"
    record: dict[str, Any] = {"block": block, "folder": folder, "seed": run.config.seed}
    record |= {name: metrics[name] for name in ("train_seconds", "trainable_parameters")}
    dev = metrics.get("dev", metrics if metrics.get("split") == "dev" else None)
    if dev is not None:
        record["dev"] = {name: dev[name] for name in _SCORES}
    items = task_items(run.config.task).test
    if items:
        prediction = run.predict(items)
        record["test"] = _scores(prediction)
        if prediction.num_samples:
            record["test_mean"] = _scores(run.predict(items, 0))
        scores = metrics | {"split": "test"} | prediction.metrics() | ({} if dev is None else {"dev": record["dev"]})
        write_evaluation(output / folder, prediction, scores)
    return record


def _scores(prediction: Prediction) -> dict[str, Any]:
    metrics = prediction.metrics()
    return {name: metrics[name] for name in _SCORES}


def _write_merged(output: Path, blocks: int) -> None:
    """`merged/`, unless it holds that many blocks already."""
    record = _read(output / "merged" / "export.json")
    if record is not None and record.get("blocks") == blocks:
        return
    last = load_run(output / f"block{blocks - 1}")
    FORMATS.get("merged")().write(
        ExportRequest(last, output / "merged", last.config.seed, "float32", None, None, {"blocks": blocks})
    )


def _records(path: Path, described: dict[str, Any], defaults: dict[str, Any]) -> list[dict[str, Any]]:
    """The blocks that have ended.

    Args:
        path: Of chain.json.
        described: The config.
        defaults: What options mean that a config of an earlier version does not name.

    Raises:
        ValueError: They belong to a chain of another config.
    """
    state = _read(path)
    if state is None:
        return []
    present = completed(state["config"], described, json.loads(json.dumps(defaults)))
    old, new = (same_meaning({**config, "blocks": None}) for config in (present, described))
    if found := differences(old, new):
        raise ValueError(
            f"{path} belongs to another chain: {'; '.join(found)}. More blocks can be added; for another change choose "
            "another output folder."
        )
    return list(state["blocks"])


def _read(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.is_file() else None


def _line(record: dict[str, Any]) -> str:
    scores = record.get("test") or record.get("dev") or {}
    return "  ".join(f"{name} {scores[name]:.3f}" for name in ("accuracy", "nll", "ece") if name in scores)


def _table(records: list[dict[str, Any]]) -> str:
    """Accuracy, NLL and ECE after each block, on each split."""
    splits = [split for split in ("dev", "test", "test_mean") if split in records[0]]
    heads = ["after block", *(f"{split.replace('_', ', ')} {name}" for split in splits for name in _SCORES[:3])]
    rows = [
        [str(record["block"]), *(plus_minus(record[split][name]) for split in splits for name in _SCORES[:3])]
        for record in records
    ]
    return markdown_table(heads, rows, numbers=True) + "\n"

"""Runs a rank study: rank_study.json, rank_study.md and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy

from bayeslora.experiments.comparison import Results
from bayeslora.experiments.comparison.cells import cell_folder
from bayeslora.experiments.comparison.runner import compare
from bayeslora.experiments.ranks.config import RankStudyConfig
from bayeslora.experiments.ranks.explanations import reference_texts, text_overlap, written_texts
from bayeslora.experiments.ranks.picture import rank_study_picture
from bayeslora.experiments.ranks.table import rank_study_table
from bayeslora.metrics import summary
from bayeslora.report.text import mean_and_std
from bayeslora.runs import task_items
from bayeslora.runs.config import describe
from bayeslora.runs.loading import load_model
from bayeslora.system.files import write_file, write_json
from bayeslora.tasks import Item

FORMAT_VERSION = 1
_TASK = "task"
_SCORES = ("accuracy", "nll", "ece")


def rank_study(config: RankStudyConfig, output_dir: str | Path) -> dict[str, Any]:
    """Train and test every rank and full fine-tuning under one protocol (that of `bayeslora compare`).

    Writes `results.jsonl`, the run folders, `rank_study.json`, `rank_study.md` and `rank_study.png`; goes on where an
    earlier call stopped.

    Args:
        config: The study.
        output_dir: Folder for all of it.

    Returns:
        What rank_study.json holds. Sizes are bytes, times are relative to the smallest rank.

    Raises:
        ValueError: The folder holds the results of another config, or references are missing.
        RuntimeError: Runs failed; the message names them.
        ImportError: Text overlap is asked for and its packages are missing.
    """
    output = Path(output_dir)
    pairs = [] if config.explanation_column is None else _references(config, config.explanation_column)
    if pairs:
        # Before the hours of training, not after.
        text_overlap(["one"], ["one"])
    comparison = config.comparison()
    # Texts are written after the training and may be changed, and ranks can be added.
    later = ("explanation_column", "prompt", "explanation_examples", "max_new_tokens", "ranks", "full")
    fixed = {name: value for name, value in describe(config).items() if name not in later}
    results = compare(comparison, output, fixed | {"rows": {title: {} for title in comparison.rows}})
    total = _base_parameters(config)
    rows = [_row(config, output, results, title, total, pairs) for title in config.titles]
    for row in rows:
        row["relative_train_time"] = row["train_seconds"] / rows[0]["train_seconds"]
    record = {
        "format_version": FORMAT_VERSION,
        "model": config.model.name,
        "task": config.task.name,
        "method": config.method.name,
        "test_items": len(results.items(_TASK, "test")),
        "train_items": len(task_items(config.task).train),
        "seeds": config.seeds,
        "base_parameters": total,
        "texts": len(pairs),
        "rows": rows,
    }
    write_json(output / "rank_study.json", record)
    write_file(output / "rank_study.md", rank_study_table(record) + "\n")
    write_file(output / "rank_study.png", rank_study_picture(record))
    return record


def _references(config: RankStudyConfig, column: str) -> list[tuple[Item, str]]:
    """The test items that have a reference text, and it."""
    references = reference_texts(config.task, column)
    items = [item for item in task_items(config.task).test if item.question in references]
    if not items:
        raise ValueError(f"no test item has a text in the column {column!r}; there is nothing to compare texts with.")
    return [(item, references[item.question]) for item in items[: config.explanation_examples]]


def _base_parameters(config: RankStudyConfig) -> int:
    """Numbers in the base model, the head included."""
    width = max(len(item.choices) for item in task_items(config.task).train)
    model = load_model(config.model, config.task, num_labels=width)[0]
    return sum(parameter.numel() for parameter in model.parameters())


def _row(
    config: RankStudyConfig,
    output: Path,
    results: Results,
    title: str,
    total: int,
    pairs: Sequence[tuple[Item, str]],
) -> dict[str, Any]:
    """Means over the seeds of what a row scores and costs."""
    cells = [cell for cell in results.cells("final", _TASK, title) if cell.seed in config.seeds]
    folders = [cell_folder(output, _TASK, title, cell.learning_rate, cell.seed) for cell in cells]
    sizes = [(folder / "adapter" / "adapter_model.safetensors").stat().st_size for folder in folders]
    labels = results.items(_TASK, "test").label_array()
    scores = [summary(cell.predictions["test"].normalised(), labels) for cell in cells]
    row: dict[str, Any] = {
        "row": title,
        "learning_rate": cells[0].learning_rate,
        **{name: _spread([entry[name] for entry in scores]) for name in _SCORES},
        "trainable_parameters": cells[0].trainable_parameters,
        "trainable_share": cells[0].trainable_parameters / total,
        "adapter_bytes": sizes[0],
        "train_seconds": float(numpy.mean([cell.train_seconds for cell in cells])),
        "text_overlap": None,
    }
    if pairs:
        items, references = zip(*pairs, strict=True)
        texts = [written_texts(folder, items, config.prompt, config.max_new_tokens) for folder in folders]
        overlaps = [text_overlap(one, references) for one in texts]
        row["text_overlap"] = {name: _spread([entry[name] for entry in overlaps]) for name in overlaps[0]}
    return row


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and sample standard deviation over seeds; of one seed there is none."""
    mean, std = mean_and_std(values)
    return {"mean": mean, "std": std if len(values) > 1 else None}

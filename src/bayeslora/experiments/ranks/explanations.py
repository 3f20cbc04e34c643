"""Texts that a run writes for the test items, and how much they overlap with reference texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy

from bayeslora.runs import load_run
from bayeslora.runs.config import TaskConfig
from bayeslora.runs.items import build_task
from bayeslora.runs.prediction import write_rows
from bayeslora.system.reading import read_json_lines
from bayeslora.tasks import Item, LocalFile
from bayeslora.tasks.reading.rows import read_rows

_FILE = "explanations.jsonl"


def reference_texts(task: TaskConfig, column: str) -> dict[str, str]:
    """Reference text of each question of the task's files; rows without one are left out.

    Raises:
        ValueError: The task is no local file, no row has a text in this column, or a question has two of them.
    """
    local = build_task(task)
    if not isinstance(local, LocalFile):
        raise ValueError(f"explanation_column needs a local file, but {task.name!r} is a built-in task.")
    found: dict[str, str] = {}
    for path in (local.train, local.dev, local.test):
        for row in read_rows(path) if path is not None else ():
            question, text = row.values.get(task.question_column), row.values.get(column)
            if not isinstance(text, str) or not text.strip():
                continue
            if found.setdefault(str(question), text.strip()) != text.strip():
                raise ValueError(f"{path}, {row.place}: this question has two texts in {column!r}; keep one of them.")
    if not found:
        raise ValueError(f"no row of {task.name} has a text in the column {column!r}; correct explanation_column.")
    return found


def written_texts(folder: Path, items: Sequence[Item], prompt: str, max_new_tokens: int) -> list[str]:
    """What the run writes for each item; kept in the run's explanations.jsonl, so that it is generated once.

    Args:
        folder: Of the run.
        items: To write about.
        prompt: With "{question}" in it.
        max_new_tokens: Longest text, tokens.
    """
    prompts = [{"id": item.id, "prompt": prompt.replace("{question}", item.question)} for item in items]
    path = folder / _FILE
    rows: list[dict[str, Any]] = []
    if path.is_file():
        rows = read_json_lines(path)
    wanted = [{**entry, "max_new_tokens": max_new_tokens} for entry in prompts]
    if [{name: row.get(name) for name in ("id", "prompt", "max_new_tokens")} for row in rows] != wanted:
        from bayeslora.runs.generate import generate_records

        records = generate_records(load_run(folder), prompts, max_new_tokens=max_new_tokens)
        rows = [{**entry, "text": record["text"]} for entry, record in zip(wanted, records, strict=True)]
        write_rows(path, rows)
    return [row["text"] for row in rows]


def text_overlap(texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """chrF (character n-grams) and BLEU of all texts together, and the mean F of ROUGE-L, each from 0 to 100.

    Raises:
        ImportError: sacrebleu or rouge-score is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
        from sacrebleu import corpus_bleu, corpus_chrf
    except ImportError as error:
        raise ImportError('text overlap needs sacrebleu and rouge-score: pip install "bayeslora[text]"') from error
    scorer = RougeScorer(["rougeL"])
    pairs = zip(references, texts, strict=True)
    longest = [scorer.score(reference, text)["rougeL"].fmeasure for reference, text in pairs]
    return {
        "chrf": float(corpus_chrf(list(texts), [list(references)]).score),
        "bleu": float(corpus_bleu(list(texts), [list(references)]).score),
        "rouge_l": 100 * float(numpy.mean(longest)),
    }

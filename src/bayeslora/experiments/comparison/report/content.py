"""What a report shows: facts, a summary, and for each task its tables and pictures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from bayeslora.experiments.comparison import Results
from bayeslora.experiments.comparison.report.choices import learning_rate_table
from bayeslora.experiments.comparison.report.notes import notes
from bayeslora.experiments.comparison.report.paired import reference, verdict
from bayeslora.experiments.comparison.report.pictures import (
    cost_picture,
    entropy_picture,
    reliability_picture,
    risk_coverage_picture,
)
from bayeslora.experiments.comparison.report.rows import Row, TaskRows, planned, row_order, task_rows
from bayeslora.experiments.comparison.report.scores import Scores, TaskScores, task_scores
from bayeslora.experiments.comparison.report.tables import (
    cost_table,
    outside_table,
    paired_sentences,
    paired_table,
    reading_table,
    score_table,
    set_table,
    summary_table,
)
from bayeslora.report.colours import BASELINE, OUR_METHOD, Style, styles
from bayeslora.report.figure import Picture
from bayeslora.report.statistics import Resampling
from bayeslora.report.table import Table

Block: TypeAlias = Table | Picture


@dataclass(frozen=True)
class Section:
    """What the rows of one task did.

    Attributes:
        task: Its title.
        anchor: Its name in links.
        sizes: Number of items of each split, in words.
        blocks: Tables and pictures in their order.
    """

    task: str
    anchor: str
    sizes: str
    blocks: list[Block]


@dataclass(frozen=True)
class Report:
    """What the templates show.

    Attributes:
        missing: What an unfinished comparison still lacks, a sentence a task.
        summary: The best rows, or None as long as no final cell is there.
        uninformative: What is to be said of tasks on which no row beats the base model.
        differences: Our method against the baseline, pooled over the other tasks.
        paired: Every row against the baseline, so pooled; None where there is no baseline or nothing to pool.
        sections: One a task.
        facts: How it was made: names and texts.
        config: The config as JSON.
        notes: How to read the tables: names and texts.
    """

    missing: list[str]
    summary: Table | None
    uninformative: list[str]
    differences: list[str]
    paired: Table | None
    sections: list[Section]
    facts: dict[str, str]
    config: str
    notes: dict[str, str]


def build_report(results: Results, resamples: int = 1000) -> Report:
    """All that a report on `results` shows; it takes some seconds for each task."""
    resampling, looks = Resampling(resamples), styles(row_order(results))
    tasks = {task: task_rows(results, task) for task in results.tasks()}
    scores = {task: task_scores(rows, resampling) for task, rows in tasks.items()}
    scored = {task: found for task, found in scores.items() if _has_scores(found)}
    verdicts = {task: verdict(tasks[task]) for task in scored}
    poor = {task: found for task, found in verdicts.items() if found is not None and not found.informative}
    pooled = [tasks[task] for task in scored if task not in poor]
    other = reference(row.title for task in pooled for row in task.rows)
    return Report(
        missing=_missing(results, tasks),
        summary=summary_table(scored, poor) if scored else None,
        uninformative=[found.sentence(task) for task, found in poor.items()],
        differences=paired_sentences(pooled, other) if other else [],
        paired=paired_table(pooled, other) if other and any(len(task.rows) > 1 for task in pooled) else None,
        sections=[
            Section(task, rows.slug, _sizes(rows), _blocks(results, rows, scores[task], looks))
            for task, rows in tasks.items()
        ],
        facts=_facts(results),
        config=json.dumps(results.header.config, indent=2, ensure_ascii=False),
        notes=notes(resamples),
    )


def _has_scores(scores: TaskScores) -> bool:
    return bool(scores.test.get("nll"))


def _blocks(results: Results, task: TaskRows, scores: TaskScores, looks: Mapping[str, Style]) -> list[Block]:
    blocks: list[Block] = []
    if _has_scores(scores):
        headline = _headline(task, scores.test)
        blocks += [
            score_table(task, scores.test),
            *(reading_table(task, link, found) for link, found in scores.readings.items()),
            reliability_picture(task, scores.test, looks),
            risk_coverage_picture(task, headline, looks),
        ]
        outside = [split for split in task.outside_splits if task.with_split(split)]
        blocks += [outside_table(task, split, scores.outside[split]) for split in outside]
        rows = [row for row in headline if all(row in task.with_split(split) for split in outside)]
        if outside and rows:
            blocks.append(entropy_picture(task, outside, rows))
        if "dev" in task.items and task.with_split("dev"):
            blocks.append(set_table(task))
        blocks += [cost_table(task), cost_picture(task, scores.test, looks)]
    if results.cells(task=task.task):
        blocks.append(learning_rate_table(results, task))
    return blocks


def _headline(task: TaskRows, scores: Scores) -> list[Row]:
    """The baseline, the row of the best NLL, and our method."""
    best = [title for title, score in scores["nll"].items() if score.mark == "best"][:1]
    rows = {row.title: row for row in task.with_split("test")}
    return [rows[title] for title in dict.fromkeys([BASELINE, *best, OUR_METHOD]) if title in rows]


def _sizes(task: TaskRows) -> str:
    return ", ".join(f"{len(items)} {split}" for split, items in task.items.items())


def _missing(results: Results, tasks: Mapping[str, TaskRows]) -> list[str]:
    """One sentence for each task that lacks something."""
    sentences = []
    for name in dict.fromkeys([*planned(results, "tasks"), *tasks]):
        if name not in tasks or not results.cells(task=name):
            sentences.append(f"{name}: not started.")
        elif tasks[name].missing:
            lacking: dict[str, list[str]] = {}
            for method, seeds in tasks[name].missing.items():
                lacking.setdefault(_seeds(seeds), []).append(method)
            sentences.append(f"{name} lacks {'; '.join(f'{seeds} of {_list(who)}' for seeds, who in lacking.items())}.")
    return sentences


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {_list(map(str, seeds))}"


def _list(words: Iterable[str]) -> str:
    return ", ".join(words)


def _facts(results: Results) -> dict[str, str]:
    header, final = results.header, results.cells("final")
    seeds = sorted({cell.seed for cell in final})
    return {
        "Started": header.created,
        "Device": header.device,
        "Versions": ", ".join(
            f"{name} {number}" for name, number in ({"bayeslora": header.bayeslora} | header.versions).items()
        ),
        "Seeds": ", ".join(map(str, seeds)) or "none finished",
        "Runs": f"{len(final)} final, {len(results.cells('selection'))} to choose learning rates",
    }

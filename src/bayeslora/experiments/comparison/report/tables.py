"""The tables of a report, as text in rows and columns, and what they say in words; templates give them their form."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Container, Mapping, Sequence
from operator import attrgetter

from bayeslora.experiments.comparison import Cell
from bayeslora.experiments.comparison.records import TEMPERED
from bayeslora.experiments.comparison.report.paired import Difference, difference, hits, losses
from bayeslora.experiments.comparison.report.rows import Row, TaskRows, outside_name
from bayeslora.experiments.comparison.report.scores import Scores, TaskScores
from bayeslora.metrics import all_metrics, ece_floor
from bayeslora.metrics.base import Heading
from bayeslora.prediction.conformal import ConformalSets, evaluate
from bayeslora.report.colours import BASELINE, OUR_METHOD
from bayeslora.report.statistics import DETECTION, Score
from bayeslora.report.table import Entry, Table
from bayeslora.report.text import MISSING, mean_and_std, plus_minus

ECE_FLOOR = "ECE floor"
COVERAGE = 0.9
_PERCENT = f"{100 * COVERAGE:g} %"
_SUMMARY = ("accuracy", "nll", "ece", "auroc", "aurc")
_OUTSIDE = ("accuracy", "nll", "ece")
_RATES = Callable[[Cell], float | None]


def summary_table(scores: Mapping[str, TaskScores], uninformative: Container[str] = ()) -> Table:
    """For each task the best row of the main metrics, how many are tied with it, and the baseline.

    Args:
        scores: Of each task.
        uninformative: Tasks on which no row beats the base model, to be marked.
    """
    metrics = [metric for metric in all_metrics() if metric.name in _SUMMARY]
    return Table(
        title="The best rows on the test items",
        heads=["task", *(metric.head for metric in metrics)],
        rows={
            f"{task} (not informative)" if task in uninformative else task: [
                _winner(of_task.test[metric.name]) for metric in metrics
            ]
            for task, of_task in scores.items()
        },
        notes=[
            f"“Tied” counts the other rows that cannot be told apart from the best one; {BASELINE} is plain LoRA, the "
            "baseline."
        ],
        numeric=False,
    )


def _winner(scores: Mapping[str, Score]) -> Entry:
    best = [row for row, score in scores.items() if score.mark == "best"]
    if not best:
        return Entry(MISSING)
    tied = sum(score.mark == "tied" for score in scores.values())
    remarks = [f"{tied} tied"] if tied else []
    if BASELINE in scores and BASELINE not in best:
        remarks.append(f"{BASELINE} {plus_minus(scores[BASELINE].mean)}")
    names = " and ".join(best) if len(best) < 3 else f"{best[0]} and {len(best) - 1} others"
    return Entry(f"{names} {plus_minus(scores[best[0]].mean)}", remark=", ".join(remarks))


def score_table(task: TaskRows, scores: Scores) -> Table:
    """Rows and metrics on the test split, and how large an ECE would be without any miscalibration."""
    title = f"Scores on the {len(task.items['test'])} test items"
    table = _scores(title, all_metrics(), task, task.with_split("test"), scores)
    place = next(number for number, metric in enumerate(all_metrics(), start=1) if metric.name == "ece")
    floors = {_name(task, row): _floor(row) for row in task.with_split("test")}
    table.heads.insert(place + 1, ECE_FLOOR)
    for name, entries in table.rows.items():
        entries.insert(place, Entry(plus_minus(floors.get(name))))
    return table


def _floor(row: Row) -> float:
    return mean_and_std([ece_floor(found) for found in row.probabilities("test").values()])[0]


def reading_table(task: TaskRows, link: str, scores: Scores) -> Table:
    """The rows read by another link, which no row was trained or chosen with."""
    read = task.read_by(link)
    metrics = [metric for metric in all_metrics() if metric.name in _OUTSIDE]
    note = "The same trained adapters, with temperatures of their own. Rows are missing whose scores are not known."
    return _scores(f"Read by the {link}, as in the papers", metrics, read, read.with_split("test"), scores, [note])


def outside_table(task: TaskRows, split: str, scores: Scores) -> Table:
    """Rows and metrics on an out-of-distribution split."""
    items, metrics = task.items[split], [metric for metric in all_metrics() if metric.name in _OUTSIDE]
    notes = []
    if items.labels is None:
        metrics, notes = [], ["Its labels do not mean what those of the training mean, so only detection is scored."]
    if "test" in task.items and set(items.choices) != set(task.items["test"].choices):
        notes.append(
            "Its items do not have as many choices as the test items; entropy grows with the number of choices, and so "
            "the detection by entropy is helped or hurt by that alone."
        )
    title = f"Out of distribution: {outside_name(split)}, {len(items)} items"
    return _scores(title, [*metrics, *DETECTION], task, task.with_split(split), scores, notes)


def _scores(
    title: str,
    metrics: Sequence[Heading],
    task: TaskRows,
    rows: Sequence[Row],
    scores: Scores,
    notes: Sequence[str] = (),
) -> Table:
    return Table(
        title=title,
        heads=["method", *(metric.head for metric in metrics)],
        rows={
            _name(task, row): [_score(scores.get(metric.name, {}).get(row.title)) for metric in metrics] for row in rows
        }
        | _without_cells(task, len(metrics)),
        notes=list(notes),
    )


def _name(task: TaskRows, row: Row) -> str:
    remarks = [_left_out(task, row.title)] if row.title in task.left_out else []
    lacking = len(task.missing.get(row.first.method, []))
    if lacking or remarks:
        left_out = sum(map(len, task.left_out.get(row.title, {}).values()))
        have = len(row.cells)
        remarks.insert(0, f"{have} of {have + left_out + lacking} seeds")
    return f"{row.title} ({'; '.join(remarks)})" if remarks else row.title


def _left_out(task: TaskRows, title: str) -> str:
    """For example "predicts uniformly with seeds 0, 2"."""
    seeds = {meaning: ", ".join(map(str, sorted(found))) for meaning, found in task.left_out[title].items()}
    return "; ".join(f"{meaning} with seed{'s' * (',' in found)} {found}" for meaning, found in seeds.items())


def _without_cells(task: TaskRows, columns: int) -> dict[str, list[Entry]]:
    """Rows of which every seed is left out: their names say why, their entries are empty."""
    gone = task.left_out.keys() - {row.title for row in task.rows}
    return {f"{title} ({_left_out(task, title)})": [Entry(MISSING)] * columns for title in sorted(gone)}


def _score(score: Score | None) -> Entry:
    if score is None or math.isnan(score.mean):
        return Entry(MISSING)
    return Entry(plus_minus(score.mean, score.std), score.mark)


def set_table(task: TaskRows) -> Table:
    """Coverage and size of split-conformal prediction sets, calibrated on dev and measured on test."""
    labels = {split: task.items[split].label_array() for split in ("dev", "test")}
    masks = {split: task.items[split].choice_mask() for split in ("dev", "test")}
    rows, too_few = {}, False
    for row in task.with_split("test"):
        if row not in task.with_split("dev"):
            continue
        dev, test, found = row.probabilities("dev"), row.probabilities("test"), []
        for seed in row.cells:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # said below the table
                rule = ConformalSets.calibrate(dev[seed], labels["dev"], COVERAGE, "lac", masks["dev"])
            too_few |= rule.all_choices
            found.append(evaluate(rule.sets(test[seed], masks["test"]), labels["test"]))
        rows[_name(task, row)] = [
            Entry(plus_minus(*mean_and_std([values[name] for values in found]), digits))
            for name, digits in (("coverage", 3), ("set_size", 2))
        ]
    notes = [
        f"Split-conformal sets (score 1 - p) that should hold the right choice in {_PERCENT} of the items, "
        f"calibrated on the {len(task.items['dev'])} dev items. Small sets are better where the coverage is reached. "
        "The dev items also chose learning rates and temperatures, so the guarantee of coverage is approximate."
    ]
    if too_few:
        notes.append("Some calibrations could not set a threshold: those sets are all choices of an item.")
    heads = ["method", "coverage", "mean set size (choices)"]
    return Table(f"Prediction sets at {_PERCENT}", heads, rows | _without_cells(task, 2), notes)


def cost_table(task: TaskRows) -> Table:
    """What training and prediction take, also relative to the baseline and to one deterministic pass."""
    baseline = next((row for row in task.rows if row.title == BASELINE), None)

    def relative(row: Row, value: _RATES) -> str:
        own, of_baseline = row.mean(value), baseline.mean(value) if baseline is not None else None
        return MISSING if own is None or not of_baseline else f"{own / of_baseline:.2f}"

    heads = ["training (s)", "peak memory (GiB)", "trainable parameters", "extra parameters", "draws"]
    heads += ["prediction (ms per item)", "prediction / one deterministic pass"]
    train_seconds: _RATES = attrgetter("train_seconds")
    ratios: dict[str, _RATES] = {
        "training": train_seconds,
        "memory": _memory,
        "prediction": attrgetter("predict_seconds"),
    }
    if baseline is not None:
        heads += [f"{name} / {BASELINE}" for name in ratios]
    rows = {}
    for row in [row for row in task.rows if not row.has_temperature]:
        entries = [
            _significant(row.mean(train_seconds)),
            _significant(row.mean(_memory)),
            f"{row.first.trainable_parameters:,}",
            f"{row.first.extra_parameters:,}",
            f"{draws:g}" if (draws := round(row.mean(attrgetter("num_samples")) or 0, 2)) else MISSING,
            _significant(row.mean(_milliseconds_per_item)),
            _significant(row.mean(passes)),
        ]
        entries += [relative(row, value) for value in ratios.values()] if baseline is not None else []
        rows[_name(task, row)] = [Entry(text) for text in entries]
    return Table(
        "Cost, mean over seeds", ["method", *heads], rows, ["A row with a temperature costs what it does without."]
    )


def _milliseconds_per_item(cell: Cell) -> float | None:
    """Prediction time of an item, all draws included; None where the number of items is not known."""
    return 1000 * cell.predict_seconds / cell.predict_items if cell.predict_items else None


def _memory(cell: Cell) -> float | None:
    return None if cell.peak_memory_bytes is None else cell.peak_memory_bytes / 2**30


def passes(cell: Cell) -> float | None:
    """Prediction time in deterministic passes over the same items; None where they were not measured."""
    return cell.predict_seconds / cell.deterministic_seconds if cell.deterministic_seconds else None


def _significant(value: float | None) -> str:
    """Three significant digits, without an exponent."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def paired_table(tasks: Sequence[TaskRows], other: str) -> Table:
    """Every row against the row `other`, on the items of all tasks together."""
    titles = [title for title in dict.fromkeys(row.title for task in tasks for row in task.rows) if title != other]
    rows = {}
    for title in titles:
        nats, right = (difference(tasks, title, other, per_item) for per_item in (losses, hits))
        if nats.items:
            texts = (_signed(nats, 1, 3), _z(nats), _signed(right, 100, 1), _z(right), nats.extent)
            rows[title] = [Entry(text) for text in texts]
    return Table(
        title=f"Against {other}, item by item",
        heads=["method", "NLL (nats)", "z of the NLL", "accuracy (points)", "z of the accuracy", "extent"],
        rows=rows,
        notes=[
            f"Row minus {other} ± standard error, and their ratio z, on {', '.join(task.task for task in tasks)}. A "
            "negative NLL is better. Seeds predict the same items and are not independent: each item's difference is "
            "averaged over seeds first. The error is that of new items under these trained adapters; among many rows "
            "some z lies beyond 2 by chance."
        ],
    )


def paired_sentences(tasks: Sequence[TaskRows], other: str) -> list[str]:
    """The rows of our method against `other`, such as "bayesian_lora against lora: NLL -0.012 ± 0.003 over ..."."""
    titles = dict.fromkeys(row.title for task in tasks for row in task.rows)
    sentences = []
    for title in (f"{OUR_METHOD}{TEMPERED}", f"{OUR_METHOD}, one pass{TEMPERED}"):
        found = difference(tasks, title, other, losses) if title in titles and title != other else None
        if found is not None and found.items:
            sentences.append(
                f"{title} against {other}: NLL {_signed(found, 1, 3)} over {found.extent} (z {_z(found)})."
            )
    return sentences


def _signed(found: Difference, scale: float, digits: int) -> str:
    return f"{scale * found.mean:+.{digits}f} ± {scale * found.error:.{digits}f}"


def _z(found: Difference) -> str:
    return MISSING if math.isnan(found.z) else f"{found.z:+.1f}"

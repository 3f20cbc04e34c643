"""What a comparison chose on dev: learning rates, epochs and the link."""

from __future__ import annotations

from collections.abc import Sequence

from bayeslora.experiments.comparison import Cell, Results
from bayeslora.experiments.comparison.records import BASE
from bayeslora.experiments.comparison.report.rows import TaskRows, row_order
from bayeslora.metrics import nll
from bayeslora.report.table import Entry, Table
from bayeslora.report.text import MISSING, mean_and_std, plus_minus

LINK = "Link of all rows"


def learning_rate_table(results: Results, task: TaskRows) -> Table:
    """NLL on dev of each learning rate tried, which one the final cells use, and the epochs whose ends they are."""
    cells = [cell for cell in results.cells(task=task.task) if cell.derived_from is None]
    titles = [title for title in row_order(results) if title in {cell.method for cell in cells}]
    own = {title: [cell for cell in cells if cell.method == title] for title in titles}
    # Rows that take no steps have no rate, and their cells the number of one that stands for it.
    trained = [title for title in titles if title != BASE and any(map(_is_trained, own[title]))]
    tried = sorted({cell.learning_rate for title in trained for cell in own[title]})
    epochs = any("epoch" in cell.details for cell in cells)
    rows = {}
    for title in trained:
        rows[title] = _rates(task, own[title], tried)
        rows[title] += [Entry(_epochs(own[title]))] if epochs else []
    notes = ["Bold: the learning rate of the final runs; “used” where it was not chosen by a run of its own."]
    if any(entry.text.endswith("(edge)") for entries in rows.values() for entry in entries):
        notes.append("“Edge”: the best of those tried, and the lowest or highest; a better one may lie beyond.")
    if epochs:
        notes.append("Epochs: those whose ends the final runs are, one for each seed, of how many were trained.")
    return Table(
        title="Learning rates: NLL (nats) on the dev items",
        heads=["method", *(f"{rate:g}" for rate in tried), *(["epochs"] if epochs else [])],
        rows=rows,
        notes=[*notes, *_link(own.get(BASE, []))],
    )


def _is_trained(cell: Cell) -> bool:
    return cell.trainable_parameters > 0 or "diverged" in cell.details


def _rates(task: TaskRows, cells: Sequence[Cell], tried: Sequence[float]) -> list[Entry]:
    selection = [cell for cell in cells if cell.stage == "selection"]
    used = {cell.learning_rate for cell in cells if cell.stage == "final"}
    own = [cell.learning_rate for cell in selection]
    entries = []
    for rate in tried:
        found = [cell for cell in selection if cell.learning_rate == rate]
        text = plus_minus(*mean_and_std([_dev_nll(task, cell) for cell in found if "dev" in cell.predictions]))
        if text == MISSING and any("diverged" in cell.details for cell in found):
            text = "diverged"
        if rate in used:
            text = "used" if text == MISSING else text
            text += " (edge)" if len(own) > 1 and rate in (min(own), max(own)) else ""
        entries.append(Entry(text, "best" if rate in used else ""))
    return entries


def _dev_nll(task: TaskRows, cell: Cell) -> float:
    return nll(cell.predictions["dev"].padded(), task.items["dev"].label_array())


def _epochs(cells: Sequence[Cell]) -> str:
    """For example "2, 3, 3 of 4"."""
    final = [cell for cell in cells if cell.stage == "final" and "epoch" in cell.details]
    if not final:
        return MISSING
    chosen = ", ".join(f"{cell.details['epoch']:g}" for cell in sorted(final, key=lambda cell: cell.seed))
    return f"{chosen} of {final[0].details['epochs'][-1]['epoch']:g}"


def _link(base: Sequence[Cell]) -> list[str]:
    """How the length power was chosen."""
    found = next((cell.details for cell in base if "length_powers" in cell.details), None)
    if found is None:
        return []
    tried = ", ".join(f"{power}: {value:.3f}" for power, value in found["length_powers"].items())
    return [
        f"{LINK}: a choice's log-likelihood over its number of tokens to the power "
        f"{found['length_power']:g}; NLL (nats) on dev of the base model with a temperature, by power: {tried}."
    ]

"""bayeslora beside sysone and decisionformer: the same base model, records, questions and machine.

    bash studies/decisions/sys1bench/generate.sh data
    python -m studies.decisions.peers.run data studies/decisions/peers/cells.jsonl

One line for each finished cell: a task, a condition, a number of records, a draw of them, and a system. Cells that are
there are not computed again.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch

from bayeslora.methods import Lora
from bayeslora.models.base_model import _smollm2_folder
from bayeslora.runs.config import TrainConfig
from bayeslora.runs.decisions import DecisionModel
from studies.decisions.peers.records import FIXED, load, reversed_options
from studies.decisions.peers.scores import scores
from studies.decisions.peers.systems import Codes, Decisionformer, OnHidden, Read, Sysone, System, TfIdf

TESTS = {"sst2": 100, "boolq": 100, "openbookqa": 100, "support_tickets": 34, "phishing_email": 34}
"""Test records: the generated ones have three questions each."""
GRID: tuple[dict[str, Any], ...] = ({},)
"""Of sysone's settings; the first is its own."""
STEPS = 45
TURNED = 25
"""Test records whose options are turned around."""
ALL = ("tf-idf", "heads", "heads over LoRA", "sysone head", "sysone", "codes", "option texts", "decisionformer")
VARYING = ("codes", "option texts", "option texts over LoRA", "sysone", "decisionformer")
CELLS = [
    ("sst2", "clean", 50, 0),
    ("sst2", "clean", 200, 0),
    ("openbookqa", "clean", 50, 0),
    ("sst2", "noise", 50, 0),
    ("sst2", "noise", 200, 0),
    ("boolq", "clean", 50, 0),
    ("sst2", "clean", 50, 1),
    ("sst2", "noise", 50, 1),
    ("sst2", "clean", 50, 2),
    ("sst2", "noise", 50, 2),
    ("support_tickets", "clean", 50, 0),
    ("support_tickets", "noise", 50, 0),
    ("openbookqa", "clean", 200, 0),
    ("boolq", "clean", 200, 0),
    ("sst2", "clean", 25, 0),
    ("support_tickets", "clean", 25, 0),
    ("phishing_email", "clean", 50, 0),
    ("support_tickets", "clean", 200, 0),
    ("support_tickets", "unknowable", 50, 0),
    ("openbookqa", "clean", 50, 1),
    ("openbookqa", "clean", 50, 2),
    ("boolq", "clean", 50, 1),
    ("boolq", "clean", 50, 2),
]


def systems() -> dict[str, Callable[[], System]]:
    """How each row is made."""
    folder = _smollm2_folder()
    model = DecisionModel("offline:smollm2", readout="heads")
    codes = Read(model.reader)
    return {
        "tf-idf": lambda: TfIdf(model),
        "codes": lambda: Codes(codes),
        "heads": lambda: OnHidden(model),
        "heads over LoRA": lambda: OnHidden(over_lora("heads")),
        "option texts": lambda: OnHidden(DecisionModel("offline:smollm2", readout="option_texts")),
        "option texts over LoRA": lambda: OnHidden(over_lora("option_texts")),
        "sysone": lambda: Sysone(folder, GRID, tuning="lora"),
        "sysone head": lambda: Sysone(folder, GRID[:1], tuning="head"),
        "decisionformer": lambda: Decisionformer(folder, STEPS),
    }


def over_lora(readout: Literal["heads", "option_texts"]) -> DecisionModel:
    """A readout over LoRA, at the rate that dev chose for heads in studies/decisions/adapted."""
    train = TrainConfig(epochs=4, learning_rate=5e-3, arguments={"disable_tqdm": True})
    return DecisionModel("offline:smollm2", readout=readout, method=Lora(last_layers=8), train=train)


def measured(system: System, train: list[Any], test: list[Any]) -> dict[str, Any]:
    """Scores of one system, and processor seconds."""
    labels = [record.label(name) for record in test for name in record.targets]
    started = time.process_time()
    system.fit(train)
    fitted, owed = time.process_time(), system.owed
    answers = system.predict(test)
    row: dict[str, Any] = dict(scores(answers, labels))
    row["fit_seconds"] = fitted - started + owed
    row["predict_seconds"] = time.process_time() - fitted + system.owed - owed
    row["test_answers"] = len(labels)
    row["chosen"] = system.chosen
    few = [record for record in test[:TURNED] if any(q.kind == "choice" for q in record.questions.values())]
    if few and not isinstance(system, OnHidden | TfIdf):  # Heads know a question whatever the order of its options.
        row["flips"] = flips(system, few)
    if isinstance(system, Decisionformer):
        system.plain()
        plain = scores(system.predict(test), labels)
        row |= {f"{name}_without_temperature": plain[name] for name in ("nll", "ece", "aurc")}
    return row


def flips(system: System, records: list[Any]) -> float:
    """Share of choices whose answer changes when the options stand in the opposite order."""
    turned = reversed_options(records)
    asked = [record.questions[name] for record in records for name in record.targets]
    first = [_best(p) for p, q in zip(system.predict(records), asked, strict=True) if q.kind == "choice"]
    second = [len(p) - 1 - _best(p) for p in system.predict(turned)]
    return sum(a != b for a, b in zip(first, second, strict=True)) / len(first)


def _best(probabilities: tuple[float, ...]) -> int:
    return max(range(len(probabilities)), key=probabilities.__getitem__)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--cells", type=int, default=len(CELLS), help="How many, from the first.")
    parser.add_argument("--tasks", nargs="+", default=list(TESTS))
    parser.add_argument("--sizes", nargs="+", type=int, default=sorted({cell[2] for cell in CELLS}))
    parser.add_argument("--systems", nargs="+", default=ALL)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("bayeslora").setLevel(logging.ERROR)
    made = systems()
    lines = options.output.read_text(encoding="utf-8").splitlines() if options.output.exists() else []
    # Rows without a run are of a version that read one state after the other: scores to keep, seconds to measure again.
    done = [list(row.values())[:5] for row in map(json.loads, lines) if "run" in row]
    run = datetime.now(UTC).isoformat(timespec="seconds")
    asked = [cell for cell in CELLS if cell[0] in options.tasks and cell[2] in options.sizes]
    for task, condition, size, draw in asked[: options.cells]:
        train, test = load(options.data, task, condition, size, draw, TESTS[task])
        for name in options.systems:
            cell = [task, condition, size, draw, name]
            if cell in done or (task not in FIXED and name not in VARYING):
                continue
            row = dict(zip(("task", "condition", "records", "draw", "system"), cell, strict=True))
            row |= measured(made[name](), train, test) | {"run": run}
            with options.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

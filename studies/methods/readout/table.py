"""table.md from results.jsonl and cloze/results.jsonl: python -m studies.methods.readout.table"""

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from bayeslora.experiments.comparison.results import Results
from bayeslora.metrics import summary

HERE = Path(__file__).parent
COLUMNS = ("task", "training items (draws)", "row", "accuracy", "NLL", "ECE (floor)", "LOO - test NLL")
TASK_HEADER = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def mean(values: list[float]) -> float:
    return sum(values) / max(1, len(values))


def in_task(records: list[dict[str, Any]]) -> list[str]:
    groups = defaultdict(list)
    for record in records:
        groups[record["task"], record["train_items"], record["row"]].append(record)
    lines = [TASK_HEADER]
    for (task, size, row), group in sorted(groups.items(), key=lambda pair: pair[0][:2]):
        scores = {name: mean([one[name] for one in group]) for name in ("accuracy", "nll", "ece", "ece_floor")}
        gap = [one["leave_one_out_nll"] - one["nll"] for one in group if "leave_one_out_nll" in one]
        shown = f"{mean(gap):+.3f}" if gap else ""
        lines.append(
            f"| {task} | {size} ({len(group)}) | {row} | {scores['accuracy']:.3f} | {scores['nll']:.3f} | "
            f"{scores['ece']:.3f} ({scores['ece_floor']:.3f}) | {shown} |"
        )
    return lines


def cloze(records: list[dict[str, Any]]) -> list[str]:
    """Cloze LoRA and the head on the same training and test items, paired by item."""
    lines = ["| task | row | accuracy | NLL | ECE | head's NLL less this row's (z) |", "|---|---|---|---|---|---|"]
    heads = {(one["task"], one["train_items"]): one for one in records if one["row"] == "head" and one["draw"] == 0}
    found = Results.read(HERE / "cloze" / "results.jsonl")
    for cell in found.cells("final"):
        name, _, size = cell.task.partition(", ")
        labels = torch.tensor(found.items(cell.task, "test").labels)
        probabilities = torch.from_numpy(cell.predictions["test"].normalised())
        scores = summary(probabilities, labels)
        paired, head = "", heads.get((name, int(size)))
        if head is not None:
            own = probabilities.gather(-1, labels.unsqueeze(-1))[:, 0].clamp_min(1e-12).log()
            less = own - torch.tensor(head["log_probabilities"], dtype=own.dtype)
            z = float(less.mean() / (less.std() / math.sqrt(len(less))))
            paired = f"{float(less.mean()):+.3f} ({z:+.1f})"
        lines.append(
            f"| {cell.task} | {cell.method} | {float(scores['accuracy']):.3f} | {float(scores['nll']):.3f} | "
            f"{float(scores['ece']):.3f} | {paired} |"
        )
    return lines


def wrong_labels(records: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| task, 500 items, 15 % of the labels drawn anew | row | accuracy | NLL | share found |",
        "|---|---|---|---|---|",
    ]
    for row in dict.fromkeys(one["row"] for one in records):
        group = [one for one in records if one["row"] == row]
        scores = {name: mean([one[name] for one in group]) for name in ("accuracy", "nll", "wrong_labels")}
        lines.append(
            f"| {group[0]['task']} ({len(group)} draws) | {row} | {scores['accuracy']:.3f} | {scores['nll']:.3f} | "
            f"{scores['wrong_labels']:.3f} |"
        )
    return lines


def without_dev(records: list[dict[str, Any]]) -> list[str]:
    """ECE over its floor in each cell, and the temperature of the training items against that of a dev set."""
    cells = defaultdict(list)
    for one in records:
        if one["row"] == "head":
            cells[one["task"], one["train_items"]].append(one)
    found = {
        cell: mean([one["ece"] for one in some]) / mean([one["ece_floor"] for one in some])
        for cell, some in cells.items()
    }
    lines = [
        "| task | training items | ECE / floor | T, of 200 dev items | NLL, with T of the dev items | difference (z) |",
        "|---|---|---|---|---|---|",
    ]
    rows = map(json.loads, (HERE / "dev_temperature.jsonl").read_text(encoding="utf-8").splitlines())
    dev = {(row["task"], row["train_items"]): row for row in rows}
    less = []
    for cell, ratio in sorted(found.items()):
        shown = "| | | "
        if (row := dev.get(cell)) is not None:
            less.append(row["nll"] - row["dev_nll"])
            shown = (
                f"| {row['temperature']:.2f}, {row['dev_temperature']:.2f} | {row['nll']:.3f}, {row['dev_nll']:.3f} | "
                f"{less[-1]:+.4f} ({row['z']:+.1f})"
            )
        lines.append(f"| {cell[0]} | {cell[1]} | {ratio:.2f} {shown} |")
    return [
        *lines,
        f"| mean of {len(found)} and {len(less)} | | {mean([*found.values()]):.2f} | | | {mean(less):+.4f} |",
    ]


def elsewhere(records: list[dict[str, Any]]) -> list[str]:
    signs = ["novelty", "variance", "mutual information", "entropy"]
    lines = [
        f"| fitted on | asked on | {' | '.join(signs)} | NLL there | ECE there |",
        "|---|" + "---|" * (len(signs) + 3),
    ]
    for one in records:
        values = " | ".join(f"{one['auroc'][sign]:.2f}" for sign in signs)
        lines.append(f"| {one['task']} | {one['other']} | {values} | {one['nll']:.3f} | {one['ece']:.3f} |")
    values = " | ".join(f"{mean([one['auroc'][sign] for one in records]):.2f}" for sign in signs)
    return [*lines, f"| mean | | {values} | | |"] if records else []


def main() -> None:
    lines = (HERE / "results.jsonl").read_text(encoding="utf-8").splitlines()
    kinds = defaultdict(list)
    for line in lines:
        record = json.loads(line)
        kinds[record["kind"]].append(record)
    parts = {
        "Readouts of a frozen model": in_task(kinds["task"]),
        "Cloze LoRA on the same items (adapters on the last 8 layers, rate 1e-3, 3 epochs; one seed)": cloze(
            kinds["task"]
        ),
        "Without a dev set": without_dev(kinds["task"]),
        "Wrong labels": wrong_labels(kinds["wrong labels"]),
        "Other tasks: AUROC of what tells their items from the head's own": elsewhere(kinds["other task"]),
    }
    text = "\n\n".join(f"## {title}\n\n" + "\n".join(part) for title, part in parts.items() if len(part) > 2)
    (HERE / "table.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""What `bayeslora plan` says of the paper's runs, for devices of several sizes.

OMP_NUM_THREADS=1 python -m studies.methods.paper.plan --output studies/methods/paper/plan.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bayeslora.experiments.comparison.config import CompareConfig
from bayeslora.planning import Budget, PlanOptions, as_record, make_plans, parse_bytes
from bayeslora.planning.config_files import parse_run_or_comparison
from studies.cost.timing import environment, save

FOLDER = Path(__file__).parent
ROWS = ("lora", "ensemble", "bayesian_lora")
"""Those planned here: the reference, the one that trains most at once, and ours. `bayeslora plan` plans all."""
DEVICES = ("24GB", "48GB", "80GB")


def planned(path: Path) -> dict[str, Any]:
    """Plans of one config by device."""
    config, budgets = parse_run_or_comparison(path), [Budget(parse_bytes(size)) for size in DEVICES]
    assert isinstance(config, CompareConfig)
    config.rows = {title: config.rows[title] for title in ROWS}
    plans = make_plans(config, PlanOptions(budgets[0]), budgets, lambda row: print(path.stem, row, file=sys.stderr))
    return {size: as_record(plan) for size, plan in zip(DEVICES, plans, strict=True)}


def table(record: Mapping[str, Any]) -> str:
    """The configs as Markdown: the rows with the least and the most memory, and what fits where."""
    lines = [
        "| config | base model | trained, Bayesian-LoRA (over LoRA) | training, Bayesian-LoRA / the largest row | "
        f"prediction, Bayesian-LoRA | optimizer steps | items forward | {' | '.join(DEVICES)} |",
        "|---" * (7 + len(DEVICES)) + "|",
    ]
    for name, plans in record["configs"].items():
        plan = plans[DEVICES[-1]]
        own = next(row for row in plan["rows"] if row["title"] == "bayesian_lora")
        largest = max(plan["rows"], key=lambda row: row["training"]["total"])
        lines.append(
            f"| {name} | {plan['parameters'] / 1e9:.2f} B | {own['trainable'] / 1e6:.2f} M (+{own['extra']:,}) | "
            f"{_gb(own['training'])} / {_gb(largest['training'])} ({largest['title']}) | "
            f"{_gb(own['prediction'])}, {own['chunk']} of {own['samples']} samples at once | "
            f"{plan['passes']['optimizer_steps']:,} | {plan['passes']['prediction']:,} | "
            f"{' | '.join(_verdict(plans[size]) for size in DEVICES)} |"
        )
    return "\n".join(lines)


def _gb(memory: Mapping[str, int]) -> str:
    return f"{memory['total'] / 1e9:.1f} GB"


def _verdict(plan: Mapping[str, Any]) -> str:
    if plan["fits"]:
        return "fits"
    ways = [", ".join(f"{name}: {str(value).lower()}" for name, value in way.items()) for way in plan["proposals"]]
    return "; or ".join(f"`{way}`" for way in ways) or "too small"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="Print the table of a results file that is there.")
    parser.add_argument("--at_most", type=int, default=None, help="Plan only so many further configs.")
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(options.output.read_text(encoding="utf-8"))))
        return
    known = json.loads(options.output.read_text(encoding="utf-8"))["configs"] if options.output.exists() else {}
    missing = [path for path in sorted(FOLDER.glob("*.yaml")) if path.stem not in known]
    for path in missing[: options.at_most]:
        known[path.stem] = planned(path)
        save(options.output, {**environment(torch.device("cpu")), "configs": known})


if __name__ == "__main__":
    main()

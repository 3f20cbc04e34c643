"""The plan's estimate against the memory that real training steps and predictions of SmolLM2 take on this CPU.

    OMP_NUM_THREADS=1 python -m studies.cost.plan.measure --output studies/cost/plan/smollm2_cpu.json

Measured is what torch's allocator hands out on top of the model: its own record, which includes temporary tensors
inside of kernels. The batch is the largest that its items can make, which is what a plan is of. Each case is on the
disk when it ends; called again, the script goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainingArguments

from bayeslora.methods import BayesianLora
from bayeslora.planning import Estimator, Memory, Setting, Shape, base_on_meta, find_architecture
from bayeslora.prediction.predictive import predict
from bayeslora.runs import task_items
from bayeslora.runs.config import ModelConfig, TaskConfig
from bayeslora.runs.loading import load_model
from bayeslora.training.trainer import BayesianLoraTrainer
from studies.cost.timing import environment, save

ITEMS = 4
"""The first items of ARC-Easy, of which the longest is taken: short texts, since the machine may be busy."""


@dataclass(frozen=True)
class Case:
    """One training run of two steps, or one prediction."""

    work: str
    scoring: str
    rows: int = 4
    checkpointing: bool = False
    samples: int = 0


CASES = (
    Case("prediction", "cloze", samples=4),
    Case("prediction", "letter", samples=4),
    Case("training", "cloze"),
    Case("training", "letter"),
    Case("prediction", "cloze", samples=1),
    Case("training", "cloze", checkpointing=True),
    Case("training", "letter", checkpointing=True),
    Case("prediction", "letter", samples=1),
    Case("prediction", "classification", samples=4),
    Case("training", "classification"),
)
METHOD = BayesianLora(target_modules=["q_proj", "v_proj"])


def allocated(work: Callable[[], object]) -> int:
    """The most bytes that torch's CPU allocator had handed out at one moment of `work`, beyond those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    assert record.profiler is not None
    events: Any = record.profiler.kineto_results
    changes = sorted((event.start_ns(), event.nbytes()) for event in events.events() if event.name() == "[memory]")
    now = peak = 0
    for _, size in changes:
        now += size
        peak = max(peak, now)
    return peak


def train(model: Any, scoring: Any, items: list[Any], case: Case) -> None:
    """Two steps: in the second the optimizer has its state."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=2,
            per_device_train_batch_size=case.rows,
            use_cpu=True,
            remove_unused_columns=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=1000,
        )
        BayesianLoraTrainer(model=model, args=arguments, train_dataset=items, data_collator=scoring).train()


def work_of(case: Case, items: list[Any]) -> tuple[Callable[[], object], Any, Any]:
    """What is measured, the model (its bytes are there before), and the scoring."""
    task = TaskConfig(name="arc_easy", scoring=case.scoring)
    base, _, scoring = load_model(ModelConfig(dtype="float32", device="cpu"), task, len(items[0].choices))
    model = METHOD.adapt(base, scoring.kind)
    if case.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    if case.work == "training":
        return partial(train, model, scoring, items, case), model, scoring
    return partial(predict, model, scoring(items), case.samples, chunk_size=case.samples), model, scoring


def estimated(case: Case, shape: Shape, architecture: Any) -> Memory:
    """What `bayeslora plan` says."""
    kind = "sequence_classification" if case.scoring == "classification" else "causal_lm"
    base = partial(base_on_meta, architecture, kind, "float32", shape.choices)
    estimator = Estimator(base, METHOD, shape, case.samples)
    setting = Setting(case.rows, case.rows, case.checkpointing)
    if case.work == "training":
        return estimator.training(setting)
    return estimator.prediction(setting, case.samples)


def measure(case: Case) -> dict[str, Any]:
    """One row of the results; bytes. The errors are of what comes on top of the model, and of the whole."""
    items = _batch(case)
    work, model, scoring = work_of(case, items)
    held = {tensor.data_ptr(): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    stored, measured, shape = sum(held.values()), allocated(work), Shape.measured(scoring, items)
    plan = estimated(case, shape, find_architecture("offline:smollm2"))
    on_top = plan.gradients + plan.optimizer + plan.activations
    return {
        **vars(case),
        "tokens": shape.tokens,
        "stored": {"measured": stored, "estimated": plan.weights + plan.adapters},
        "on_top": {"measured": measured, "estimated": on_top},
        "error_on_top": round(on_top / measured - 1, 4),
        "error_in_total": round(plan.total / (stored + measured) - 1, 4),
    }


def _batch(case: Case) -> list[Any]:
    """The longest item in every row; but for cloze, which always has a mask, a shorter one that must be padded."""
    first = task_items(TaskConfig(name="arc_easy")).train[:ITEMS]
    *shorter, longest = sorted(first, key=lambda item: len(item.question) + sum(map(len, item.choices)))
    return [longest] * case.rows if case.scoring == "cloze" else [*[longest] * (case.rows - 1), shorter[0]]


def table(record: Mapping[str, Any]) -> str:
    """The rows as Markdown."""
    lines = [
        "| | batch | tokens | S | measured | estimated | error |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        words = [row["work"], row["scoring"], *["checkpointing"] * row["checkpointing"]]
        sizes = row["on_top"]
        lines.append(
            f"| {', '.join(words)} | {row['rows']} | {row['tokens']} | {row['samples'] or '-'} | "
            f"{sizes['measured'] / 1e6:.0f} MB | {sizes['estimated'] / 1e6:.0f} MB | {row['error_on_top']:+.1%} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="Print the table of a results file that is there.")
    parser.add_argument("--at_most", type=int, default=None, help="Measure only so many further cases.")
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(options.output.read_text(encoding="utf-8"))))
        return
    rows = json.loads(options.output.read_text(encoding="utf-8"))["rows"] if options.output.exists() else []
    done = [{name: row[name] for name in vars(CASES[0])} for row in rows]
    for case in [case for case in CASES if vars(case) not in done][: options.at_most]:
        rows.append(measure(case))
        print(rows[-1], file=sys.stderr, flush=True)
        save(options.output, {**environment(torch.device("cpu")), "rows": rows})


if __name__ == "__main__":
    main()

"""CPU seconds of a head on frozen features against cloze LoRA, on one core, in one process: seconds.json beside it.

    OMP_NUM_THREADS=1 python -m studies.methods.readout.seconds

ARC-Easy, 100 training and 50 test items. The head's training has its features; LoRA's has the trunk cache, which is
how `bayeslora train` runs. Predictions read every item anew, in batches of 8 (LoRA) and in forwards of 512 tokens
(head), or in one forward for each item.
"""

import json
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from bayeslora.methods import Lora, Method
from bayeslora.methods.bayesian_head import BayesianHead
from bayeslora.readouts import features
from bayeslora.runs import train
from bayeslora.runs.config import ModelConfig, RunConfig, TaskConfig, TrainConfig
from bayeslora.runs.heads import HeadRun
from bayeslora.runs.run import Run
from bayeslora.tasks import Item
from studies.methods.readout.measure import drawn, splits

RESULTS = Path(__file__).with_name("seconds.json")
MODEL = ModelConfig(name="offline:smollm2", dtype="bfloat16")
ROWS = {
    "cloze LoRA, last 8 layers, 3 epochs": ("cloze", Lora(last_layers=8)),
    "head": ("options", BayesianHead()),
    "head, hidden states alone": ("options", BayesianHead(reads="hidden")),
}
ALONE = ", items one by one"


def timed(action: Callable[[], Any]) -> tuple[Any, float]:
    started = time.process_time()
    return action(), time.process_time() - started


def write_items(path: Path, items: list[Item]) -> None:
    rows = [{"id": one.id, "question": one.question, "choices": list(one.choices), "label": one.label} for one in items]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def config_of(data: Path, scoring: str, method: Method, training: TrainConfig) -> RunConfig:
    task = TaskConfig(name=str(data), scoring=scoring, labels="index")
    return RunConfig(model=MODEL, task=task, method=method, train=training, num_samples=0)


def predicting(run: Run, test: list[Item]) -> float:
    alone = run.without_cache()
    alone.predict(test[:8], progress=False)  # Warms up.
    _, seconds = timed(lambda: alone.predict(test[8:58], progress=False))
    return round(seconds, 2)


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    pool, test = splits("arc_easy")
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        # Nothing is done with these dev and test items.
        for name, items in (("train", drawn(pool, 100, 0)), ("dev", test[:8]), ("test", test[:8])):
            write_items(data / f"{name}.jsonl", items)
        runs: dict[str, Run] = {}
        warm = TrainConfig(max_steps=1)
        train(config_of(data, "cloze", Lora(last_layers=8), warm), Path(folder) / "warm", evaluate_dev=False)
        for row, (scoring, method) in ROWS.items():
            config = config_of(data, scoring, method, TrainConfig(epochs=3, save_steps=100_000))
            runs[row], seconds = timed(partial(train, config, Path(folder) / row, evaluate_dev=False))
            found[row] = {"train_cpu_seconds": round(seconds, 1)}
        for row, run in runs.items():
            found[row]["predict_cpu_seconds"] = predicting(run, test)
            if isinstance(run, HeadRun):
                with patch.object(features, "_TOKENS", 1):
                    found[row + ALONE] = {"predict_cpu_seconds": predicting(run, test)}
    first = found[next(iter(ROWS))]
    for seconds_of in found.values():
        seconds_of |= {
            f"{name}_ratio": round(seconds_of[f"{name}_cpu_seconds"] / first[f"{name}_cpu_seconds"], 3)
            for name in ("train", "predict")
            if f"{name}_cpu_seconds" in seconds_of
        }
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()

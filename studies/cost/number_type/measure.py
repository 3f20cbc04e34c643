"""SmolLM2 in float32 and in bfloat16 on one thread of a CPU: processor seconds, and NLL.

OMP_NUM_THREADS=1 python studies/cost/number_type/measure.py --output studies/cost/number_type/results.json
"""

import argparse
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

import bayeslora
from bayeslora.models import load_base_model
from bayeslora.models.kinds import DtypeName
from bayeslora.models.number_type import _has_bfloat16_units
from bayeslora.system.files import write_json

TYPES: tuple[DtypeName, ...] = ("float32", "bfloat16")
ROUNDS, BATCH = 5, 4


def seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--items", type=int, default=200)
    options = parser.parse_args()
    items = bayeslora.get_task("arc_easy").splits().test[: options.items]
    bases = {kind: load_base_model("offline:smollm2", dtype=kind, device="cpu") for kind in TYPES}
    prepare = {kind: bayeslora.Cloze(tokenizer) for kind, (_, tokenizer) in bases.items()}
    batches = [items[start : start + BATCH] for start in range(0, len(items), BATCH)]

    @torch.no_grad()
    def nll(kind: DtypeName) -> float:
        total = 0.0
        for batch in batches:
            inputs = prepare[kind](batch)
            logs = inputs.choice_logits(bases[kind][0]).log_softmax(-1)
            total -= logs.gather(1, inputs["labels"].unsqueeze(1)).sum().item()
        return total / len(items)

    found = {kind: nll(kind) for kind in TYPES}

    @torch.no_grad()
    def predict(kind: DtypeName) -> None:
        for batch in batches[:4]:
            prepare[kind](batch).choice_logits(bases[kind][0])

    times: dict[str, list[float]] = {kind: [] for kind in TYPES}
    steps: dict[str, list[float]] = {kind: [] for kind in TYPES}
    for _ in range(ROUNDS):
        for kind in TYPES:
            times[kind].append(seconds(partial(predict, kind)))
    layers = list(range(22, 30))
    config = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], layers_to_transform=layers, task_type="CAUSAL_LM")
    adapted = {kind: get_peft_model(base, config) for kind, (base, _) in bases.items()}

    def step(kind: DtypeName) -> None:
        inputs = prepare[kind](batches[0])
        torch.nn.functional.cross_entropy(inputs.choice_logits(adapted[kind]), inputs["labels"]).backward()

    for _ in range(ROUNDS):
        for kind in TYPES:
            steps[kind].append(seconds(partial(step, kind)))
    record = {
        "processor": platform.processor() or platform.machine(),
        "bfloat16_units": _has_bfloat16_units(),
        "torch": torch.__version__,
        "items": len(items),
        "nll": found,
        "predict_seconds": times,
        "step_seconds": steps,
        "predict_ratio": min(times["float32"]) / min(times["bfloat16"]),
        "step_ratio": min(steps["float32"]) / min(steps["bfloat16"]),
    }
    write_json(options.output, record)
    print({name: record[name] for name in ("nll", "predict_ratio", "step_ratio")})


if __name__ == "__main__":
    main()

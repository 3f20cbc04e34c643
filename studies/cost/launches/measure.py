"""What a GPU that waits for its host would see: operations launched, and the host's time, as ratios to plain PEFT LoRA.

python -m studies.cost.launches.measure --output studies/cost/launches/launches.json --compile

A small model on a large GPU computes faster than the host can launch; its time is then that of the launches. Here the
host's share is measured without a GPU, on a model of SmolLM2's depth that is 36 wide and reads rows of 4 tokens, so
that hardly anything is left to compute. A prediction of 10 samples from adapters in the top 7 layers at batch size 1,
and a training step with adapters on q and v of all layers. Operations are those that are no views, counted as PyTorch
dispatches them; the time is that of the process.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

import bayeslora
from bayeslora.models import load_base_model
from studies.cost.prediction.measure import REFERENCE, Setting
from studies.cost.timing import Work, environment, paired, ratios, save
from studies.cost.training_step.measure import LORA, step_of

CONFIGS: dict[str, Callable[..., LoraConfig]] = {
    REFERENCE: LoraConfig,
    "Bayesian-LoRA": bayeslora.BayesianLoraConfig,
}
NARROW = {"hidden_size": 36, "intermediate_size": 36, "head_dim": 4}
"""SmolLM2 has 9 heads."""
WORDS = 100
"""Of the model that is trained. A prediction reads the letters of SmolLM2's tokenizer, and computes no other words."""


class Launches(TorchDispatchMode):
    """Counts the operations that launch something: no views, and no reshapes, which are views where they can be."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not (func.is_view or func is torch.ops.aten._unsafe_view.default)
        return func(*args, **(kwargs or {}))


def launched(work: Work) -> int:
    """Operations of one call."""
    with Launches() as launches:
        work()
    return launches.count


def compared(works: dict[str, Work], rounds: int) -> dict[str, Any]:
    """Launches of each, over those of plain LoRA, and the ratios of the host's time."""
    for work in works.values():
        work()  # The first step makes the optimizer's state.
    counts = {name: launched(work) for name, work in works.items()}
    times = ratios(paired(works, torch.device("cpu"), rounds, clock="processor"), REFERENCE)
    return {
        name: {"launches": count, "launch_ratio": round(count / counts[REFERENCE], 4), "host": times[name]}
        for name, count in counts.items()
    }


def steps_of(config: Any, compiled: bool) -> dict[str, Work]:
    """A training step of each, on a model of this config."""
    ids = torch.randint(0, WORDS, (8, 4), generator=torch.Generator().manual_seed(0))
    steps: dict[str, Work] = {}
    for name, adapter in CONFIGS.items():
        model = get_peft_model(AutoModelForCausalLM.from_config(config), adapter(**LORA)).train()
        steps[name] = step_of(model, ids, compiled)
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--compile", action="store_true", help="Also a training step with torch.compile.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    wide, tokenizer = load_base_model("offline:smollm2")
    config = copy.deepcopy(wide.config)
    config.update(NARROW)
    base = AutoModelForCausalLM.from_config(config)
    setting = Setting((base, copy.deepcopy(base)), tokenizer, batch=1, length=4)
    prediction: dict[str, Work] = {
        REFERENCE: setting.lora,
        "posterior mean": setting.mean,
        "10 samples": setting.sampled,
    }
    record = environment(torch.device("cpu")) | {"narrow": NARROW, "prediction": compared(prediction, options.rounds)}
    save(options.output, record)
    config.update({"vocab_size": WORDS})
    record["training step"] = compared(steps_of(config, compiled=False), options.rounds)
    save(options.output, record)
    if options.compile:
        # What a compiled step launches is not dispatched one by one.
        times = paired(steps_of(config, compiled=True), torch.device("cpu"), options.rounds, 4, clock="processor")
        record["training step, compiled"] = ratios(times, REFERENCE)
        save(options.output, record)


if __name__ == "__main__":
    main()

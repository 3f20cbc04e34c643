"""Time and memory of one training step, as ratios to plain PEFT LoRA of the same rank and targets in the same process.

python -m studies.cost.training_step.measure --output studies/cost/training_step/training_step_cpu.json

SmolLM2-135M, q and v of all layers, r = 8, batches of 8 x 64 tokens, AdamW: zero_grad, forward, loss (for Bayesian-LoRA
with KL / N and a new draw), backward, step. Time: median of the ratios of paired steps. Memory: peak of a process of
its own that takes two steps, over that of plain LoRA.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable, Mapping
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

import bayeslora
from bayeslora.adapters.draws import hold_draw, random_modules
from bayeslora.methods import method_classes, trainable_parameters
from bayeslora.models import load_base_model
from bayeslora.system.memory import peak_memory
from bayeslora.training.elbo import kl_divergence, negative_elbo
from studies.cost.timing import common_options, environment, paired, ratios, save

NUM_EXAMPLES = 2000
LORA: dict[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def configs() -> dict[str, Callable[[], LoraConfig]]:
    """Plain LoRA first: everything is compared with it."""
    methods = {method.name: method.config_class for method in method_classes()}
    found: dict[str, Callable[[], LoraConfig]] = {
        "lora": lambda: LoraConfig(**LORA),
        "bayesian_lora": lambda: bayeslora.BayesianLoraConfig(**LORA),
        "blob": lambda: methods["blob"](**LORA),
        "mean_field": lambda: methods["mean_field"](**LORA),
    }
    try:
        from peft import MontecloraConfig
    except ImportError:
        return found
    return found | {"PEFT's MonteCLoRA": lambda: LoraConfig(**LORA, monteclora_config=MontecloraConfig())}


def adapted(name: str, device: torch.device, checkpointing: bool) -> PeftModel:
    """The base model in training mode with adapters."""
    torch.manual_seed(0)
    base, _ = load_base_model("offline:smollm2", dtype="float32", device=str(device))
    model = get_peft_model(base, configs()[name]())
    if checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
        base.enable_input_require_grads()
    return model.train()


def step_of(
    model: PeftModel, ids: torch.Tensor, compiled: bool = False, backend: str = "inductor"
) -> Callable[[], None]:
    """One optimizer step, as the trainer takes it; where it is `compiled`, by this backend of torch.compile."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    counter = iter(range(10**9))
    run: nn.Module = torch.compile(model, backend=backend) if compiled else model  # type: ignore[assignment]
    random = bool(random_modules(model))

    def step() -> None:
        optimizer.zero_grad()
        if random:
            hold_draw(model, seed=0, step=next(counter))
        loss = run(input_ids=ids, labels=ids).loss
        if random:
            loss = negative_elbo(loss, kl_divergence(model), NUM_EXAMPLES)
        loss.backward()
        optimizer.step()

    return step


def tokens(batch: int, length: int, device: torch.device) -> torch.Tensor:
    """Random tokens [batch, length]; time does not depend on which."""
    return torch.randint(0, 40000, (batch, length), generator=torch.Generator().manual_seed(0)).to(device)


def timed(options: argparse.Namespace, checkpointing: bool) -> dict[str, dict[str, float]]:
    """The ratio table."""
    device = torch.device(options.device)
    ids = tokens(options.batch, options.length, device)
    steps = {name: step_of(adapted(name, device, checkpointing), ids) for name in options.rows}
    if options.compile:
        for name in ("lora", "bayesian_lora"):
            steps[f"{name}, compiled"] = step_of(adapted(name, device, checkpointing), ids, compiled=True)
    return ratios(paired(steps, device, options.rounds), "lora")


def _peak(name: str, checkpointing: bool, options: argparse.Namespace, queue: Any) -> None:
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    step = step_of(adapted(name, device, checkpointing), tokens(options.batch, options.length, device))
    step()
    with peak_memory(device) as memory:
        step()
    queue.put(memory.peak)


def peak(name: str, checkpointing: bool, options: argparse.Namespace) -> int:
    """Bytes at the peak of a step, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue()
    process = context.Process(target=_peak, args=(name, checkpointing, options, queue))
    process.start()
    result: int = queue.get(timeout=900)
    process.join()
    return result


def memory_table(options: argparse.Namespace, checkpointing: bool) -> dict[str, dict[str, float]]:
    """Median peak of three processes each, over plain LoRA's."""
    names = ("lora", "bayesian_lora")
    peaks = {name: sorted(peak(name, checkpointing, options) for _ in range(3))[1] for name in names}
    return {name: {"bytes": value, "ratio": round(value / peaks["lora"], 4)} for name, value in peaks.items()}


def parameter_table() -> dict[str, Mapping[str, float]]:
    """Trainable parameters, for SmolLM2 and for a model of width 4096 (on the meta device)."""
    smollm2 = load_base_model("offline:smollm2")[0].config
    wide = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)
    table: dict[str, Mapping[str, float]] = {}
    for title, config in (("SmolLM2-135M", smollm2), ("Llama, 32 layers of width 4096", wide)):
        counts = {}
        for name in ("lora", "bayesian_lora"):
            with torch.device("meta"):
                base = AutoModelForCausalLM.from_config(config)
                counts[name] = trainable_parameters(get_peft_model(base, configs()[name]()))
        extra = counts["bayesian_lora"] / counts["lora"] - 1
        table[title] = {**counts, "extra_percent": round(100 * extra, 3)}
    return table


def main() -> None:
    parser = common_options(__doc__, rounds=15)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rows", nargs="+", choices=list(configs()), default=list(configs()), help="lora among them.")
    parser.add_argument("--compile", action="store_true", help="Also with torch.compile.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    record: dict[str, Any] = environment(torch.device(options.device))
    record["setting"] = {"model": "SmolLM2-135M", "dtype": "float32", **LORA, "batch": [options.batch, options.length]}
    record["parameters"] = parameter_table()
    for checkpointing in (False, True):
        title = "with gradient checkpointing" if checkpointing else "without gradient checkpointing"
        record[title] = {"time": timed(options, checkpointing), "memory": memory_table(options, checkpointing)}
        save(options.output, record)


if __name__ == "__main__":
    main()

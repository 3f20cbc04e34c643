"""Time and memory of the optimizers for LoRA pairs, as ratios to torch's fused AdamW in the same process.

python -m studies.cost.optimizers.measure --output studies/cost/optimizers/optimizers_cpu.json

SmolLM2-135M, q and v of all layers, batches of 8 x 64 tokens. All optimizers work on the parameters of one model, with
a learning rate so small that it stays what it is. Training step: zero_grad, forward, loss, backward, step. Optimizer
step: the step alone, on gradients that are there. State: bytes that the optimizer keeps for the adapter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from bayeslora.models import load_base_model
from bayeslora.training.optimizers import PAIR_OPTIMIZERS, build_optimizer
from studies.cost.timing import common_options, environment, paired, ratios, save
from studies.cost.training_step.measure import LORA, tokens

RATE = 1e-9


def adapted(device: torch.device, rank: int) -> PeftModel:
    """The base model in training mode with plain LoRA adapters whose B is not zero."""
    torch.manual_seed(0)
    base, _ = load_base_model("offline:smollm2", dtype="float32", device=str(device))
    config = LoraConfig(**{**LORA, "r": rank, "lora_alpha": 2 * rank}, init_lora_weights=False)
    return get_peft_model(base, config).train()


def optimizers(model: PeftModel) -> dict[str, torch.optim.Optimizer]:
    """AdamW first: everything is compared with it."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found: dict[str, torch.optim.Optimizer] = {"adamw": torch.optim.AdamW(parameters, lr=RATE, fused=True)}
    for name in PAIR_OPTIMIZERS.names():
        options: dict[str, Any] = {"warmup_steps": 0} if name.startswith("reflora") else {}
        found[name] = build_optimizer(name, model, lr=RATE, fused=True, **options)
    return found


def training_step(model: PeftModel, optimizer: torch.optim.Optimizer, ids: torch.Tensor) -> Callable[[], None]:
    def step() -> None:
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()

    return step


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    tensors = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return sum(value.numel() * value.element_size() for value in tensors)


def measured(device: torch.device, rank: int, ids: torch.Tensor, rounds: int) -> dict[str, Any]:
    """The tables of one rank."""
    model = adapted(device, rank)
    found = optimizers(model)
    steps = {name: training_step(model, optimizer, ids) for name, optimizer in found.items()}
    whole = ratios(paired(steps, device, rounds, warmup=2), "adamw")
    alone = ratios(paired({name: one.step for name, one in found.items()}, device, 3 * rounds, warmup=2), "adamw")
    sizes = {name: state_bytes(optimizer) for name, optimizer in found.items()}
    state = {name: {"bytes": size, "ratio": round(size / sizes["adamw"], 4)} for name, size in sizes.items()}
    return {"training step": whole, "optimizer step": alone, "state": state}


def main() -> None:
    parser = common_options(__doc__, rounds=9)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 32])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    ids = tokens(options.batch, options.length, device)
    record: dict[str, Any] = environment(device)
    targets = LORA["target_modules"]
    record["setting"] = {"model": "SmolLM2-135M", "targets": targets, "batch": [options.batch, options.length]}
    for rank in options.ranks:
        record[f"r = {rank}"] = measured(device, rank, ids, options.rounds)
        save(options.output, record)


if __name__ == "__main__":
    main()

"""TRL's SFTTrainer with the ELBO: the loss and its gradient against a hand-written NLL + KL / N, however it is batched."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import bayesian, byte_level_tokenizer, config_for, distance, seeded, tiny_llama
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

pytest.importorskip("trl")

from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from bayeslora import kl_divergence
from bayeslora.sampling import hold_draw
from bayeslora.sft import BayesianSFTTrainer

SEED = 3
WORDS = ["iron", "wood", "the sun", "a plant", "the moon", "paper and glass", "water", "a quick brown fox"]


def rows(count: int = 8) -> Dataset:
    """Prompts and completions of very different lengths."""
    return Dataset.from_list(
        [
            {"prompt": "Q: " + "what is " * (1 + index % 4), "completion": " " + " ".join(WORDS[: 1 + (3 * index) % 7])}
            for index in range(count)
        ]
    )


def texts(count: int = 8) -> Dataset:
    return Dataset.from_list([{"text": " ".join(WORDS[: 1 + (3 * index) % 7])} for index in range(count)])


def model_for(**options: Any) -> PeftModel:
    with seeded(100):
        fields = {"layers_to_transform": [2, 3], "task_type": "CAUSAL_LM", "prior_std": 0.1, **options}
        model = get_peft_model(tiny_llama(vocab_size=320), config_for("llama", **fields))
    with seeded(1), torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model  # type: ignore[return-value]


def plain_model() -> PeftModel:
    with seeded(1):
        return get_peft_model(tiny_llama(vocab_size=320), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))  # type: ignore[return-value]


class Gradients(TrainerCallback):
    """Gradients of the first step, as the optimizer gets them."""

    def __init__(self) -> None:
        self.first: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.first:
            named = kwargs["model"].named_parameters()
            self.first = {name: p.grad.clone() for name, p in named if p.grad is not None}


def trainer_for(
    folder: Path,
    model: nn.Module | None = None,
    data: Dataset | None = None,
    *,
    kind: type[SFTTrainer] = BayesianSFTTrainer,
    tokenizer: Any = None,
    callbacks: Any = (),
    own: dict[str, Any] | None = None,
    **arguments: Any,
) -> Any:
    fields: dict[str, Any] = {
        "output_dir": str(folder),
        "seed": SEED,
        "per_device_train_batch_size": 8,
        "max_steps": 1,
        "learning_rate": 0.05,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
    }
    return kind(
        model=model_for() if model is None else model,
        args=SFTConfig(**{**fields, **arguments}),
        train_dataset=rows() if data is None else data,
        processing_class=byte_level_tokenizer() if tokenizer is None else tokenizer,
        callbacks=list(callbacks),
        **(own or {}),
    )


def targets_by_hand(sequences: list[tuple[list[int], list[int]]]) -> int:
    return sum(sum(label != -100 for label in labels[1:]) for _, labels in sequences)


def encoded(data: Dataset) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of prompts and completions as the definition says, without TRL."""
    tokenizer = byte_level_tokenizer()
    found = []
    for row in data:
        prompt = tokenizer(row["prompt"])["input_ids"] if "prompt" in row else []
        text = row.get("prompt", "") + row.get("completion", row.get("text", "")) + "</s>"
        ids = tokenizer(text)["input_ids"]
        found.append((ids, [-100] * len(prompt) + ids[len(prompt) :]))
    return found


def elbo_by_hand(model: PeftModel, sequences: list[tuple[list[int], list[int]]], beta: float) -> Tensor:
    """One text after the other, so that nothing depends on padding, packing or accumulation."""
    total = torch.zeros(())
    for ids, labels in sequences:
        logits = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0, :-1], -1)
        total = total - sum(logits[place, label] for place, label in enumerate(labels[1:]) if label != -100)
    count = targets_by_hand(sequences)
    return total / count + beta * kl_divergence(model).total / count


def expected_step(data: Dataset, beta: float) -> tuple[float, dict[str, Tensor]]:
    model = model_for().train()
    hold_draw(model, seed=SEED, step=0)
    loss = elbo_by_hand(model, encoded(data), beta)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


SHAPES: dict[str, dict[str, Any]] = {
    "batch 8": {},
    "2 x 4": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    "1 x 8": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
    "checkpointing": {"gradient_checkpointing": True},
    "reentrant": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("beta", [0.0, 5.0])
def test_gradient_and_loss_are_those_of_the_elbo(shape: str, beta: float, tmp_path: Path) -> None:
    seen = Gradients()
    trainer = trainer_for(tmp_path, callbacks=[seen], own={"beta": beta}, **SHAPES[shape])
    trainer.train()
    loss, expected = expected_step(rows(), beta)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss, rel=1e-4)
    assert seen.first.keys() == expected.keys()
    scale = max(value.abs().max().item() for value in expected.values())
    assert max(distance(seen.first[name], expected[name]) for name in expected) < 4e-6 * max(1.0, scale)

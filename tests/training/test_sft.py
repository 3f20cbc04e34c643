"""TRL's SFTTrainer with the ELBO: loss and gradient against a hand-written NLL + KL / N, however batched."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from conftest import byte_level_tokenizer, config_for, distance, seeded, tiny_llama

pytest.importorskip("trl")

from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from bayeslora import kl_divergence
from bayeslora.adapters.draws import hold_draw
from bayeslora.training.sft import BayesianSFTTrainer

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
def test_gradient_and_loss_are_those_of_the_elbo(shape: str, tmp_path: Path) -> None:
    seen = Gradients()
    trainer = trainer_for(tmp_path, callbacks=[seen], own={"beta": 5.0}, **SHAPES[shape])
    trainer.train()
    loss, expected = expected_step(rows(), 5.0)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss, rel=1e-4)
    assert seen.first.keys() == expected.keys()
    scale = max(value.abs().max().item() for value in expected.values())
    assert max(distance(seen.first[name], expected[name]) for name in expected) < 4e-6 * max(1.0, scale)


# --- N -------------------------------------------------------------------------------------------------------------

PREPARED: dict[str, tuple[Any, dict[str, Any]]] = {
    "completions": (rows, {}),
    "whole texts of prompts and completions": (rows, {"completion_only_loss": False}),
    "texts": (texts, {}),
    "packed": (texts, {"packing": True, "max_length": 64}),
    "packed completions": (rows, {"packing": True, "max_length": 64}),
    "wrapped": (texts, {"packing": True, "packing_strategy": "wrapped", "max_length": 32}),
    "padding-free": (texts, {"padding_free": True, "max_length": None}),
    "truncated": (texts, {"max_length": 12}),
}


@pytest.mark.parametrize("name", PREPARED)
def test_n_is_the_number_of_tokens_that_the_loss_counts(name: str, tmp_path: Path) -> None:
    data, arguments = PREPARED[name]
    trainer = trainer_for(tmp_path, data=data(), **arguments)
    _, counted = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 10**6, torch.device("cpu"))
    assert trainer.num_observations == int(counted)
    by_hand = {"completions": rows, "texts": texts, "packed": texts, "packed completions": rows, "padding-free": texts}
    if name in by_hand:
        assert trainer.num_observations == targets_by_hand(encoded(by_hand[name]()))
    if name.startswith("packed"):
        assert len(trainer.train_dataset) < 8


@pytest.mark.parametrize("data", [rows, texts])
def test_packed_texts_give_the_gradient_of_single_ones(data: Any, tmp_path: Path) -> None:
    seen = Gradients()
    trainer = trainer_for(tmp_path, data=data(), callbacks=[seen], own={"beta": 5.0}, packing=True, max_length=64)
    trainer.train()
    loss, expected = expected_step(data(), 5.0)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss, rel=1e-4)
    scale = max(value.abs().max().item() for value in expected.values())
    assert max(distance(seen.first[name], expected[name]) for name in expected) < 4e-6 * max(1.0, scale)


CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}A:{% generation %} {{ message.content }}</s>"
    "{% endgeneration %}{% else %}Q: {{ message.content }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)


def test_n_with_assistant_only_loss(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    answers = WORDS[:5]
    chats = [
        {"messages": [{"role": "user", "content": "what?"}, {"role": "assistant", "content": answer}]}
        for answer in answers
    ]
    trainer = trainer_for(tmp_path, data=Dataset.from_list(chats), tokenizer=tokenizer, assistant_only_loss=True)
    expected = sum(len(tokenizer(f" {answer}</s>")["input_ids"]) for answer in answers)
    assert trainer.num_observations == expected


def test_labels_of_the_collator_are_counted_when_they_are_seen(tmp_path: Path) -> None:
    from transformers import DataCollatorForLanguageModeling, TrainingArguments

    from bayeslora import BayesianLoraTrainer

    tokenizer = byte_level_tokenizer()
    data = texts().map(lambda row: tokenizer(row["text"]))
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=8, logging_steps=1, report_to=[], use_cpu=True
    )
    trainer = BayesianLoraTrainer(model=model_for(), args=arguments, train_dataset=data, data_collator=collator)
    trainer.train()
    count = sum(len(row["input_ids"]) - 1 for row in data)
    assert trainer.num_observations == count
    log = trainer.state.log_history[0]
    assert log["loss"] == pytest.approx(log["nll"] + log["kl"] / count, rel=1e-4)


# --- other models, precision, saving -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["batch 8", "2 x 4", "checkpointing"])
def test_plain_lora_trains_as_in_sft_trainer(shape: str, tmp_path: Path) -> None:
    logs, weights = [], []
    for kind in (SFTTrainer, BayesianSFTTrainer):
        trainer = trainer_for(tmp_path, plain_model(), kind=kind, **{**SHAPES[shape], "max_steps": 3})
        trainer.train()
        logs.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        weights.append({name: p.detach() for name, p in trainer.model.named_parameters() if p.requires_grad})
    assert len(logs[0]) == 3
    assert logs[1] == pytest.approx(logs[0], rel=1e-6)
    assert max(distance(weights[1][name], weights[0][name]) for name in weights[0]) < 1e-7


def test_adapters_of_a_quantised_model_stay_in_full_precision(tmp_path: Path) -> None:
    """SFTTrainer casts whatever is trainable in a model that calls itself quantised."""
    found = {}
    for kind in (SFTTrainer, BayesianSFTTrainer):
        model = model_for()
        model.base_model.model.is_loaded_in_4bit = True
        trainer = trainer_for(tmp_path, model, kind=kind)
        found[kind] = {p.dtype for p in trainer.model.parameters() if p.requires_grad}
    assert found == {SFTTrainer: {torch.bfloat16}, BayesianSFTTrainer: {torch.float32}}


def test_mixed_precision_and_the_defaults_of_sft_config(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, bf16=True, gradient_checkpointing=True, optim="adamw_torch", max_steps=2)
    trainer.train()
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters() if p.requires_grad)
    loss, _ = expected_step(rows(), 1.0)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss, rel=0.02)


def test_a_saved_posterior_gives_the_same_numbers(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path / "run", data=rows(8), max_steps=2)
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    loaded = PeftModel.from_pretrained(tiny_llama(vocab_size=320), str(tmp_path / "adapter"), is_trainable=True)
    values = []
    for model in (trainer.model, loaded):
        model.train()
        hold_draw(model, seed=SEED, step=0)
        values.append(elbo_by_hand(model, encoded(rows()), 1.0).item())
    assert values[1] == values[0]


def test_the_adapter_can_be_made_by_the_trainer(tmp_path: Path) -> None:
    """A few lines: a base model and peft_config, as with SFTTrainer."""
    trainer = trainer_for(tmp_path, tiny_llama(vocab_size=320), own={"peft_config": config_for("llama")})
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["kl"] > 0
    assert log["loss"] == pytest.approx(log["nll"] + log["kl"] / trainer.num_observations, rel=1e-4)


def test_without_trl_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    import bayeslora

    monkeypatch.delitem(sys.modules, "bayeslora.training.sft")
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(ImportError, match=r"bayeslora\[sft\]"):
        _ = bayeslora.BayesianSFTTrainer

"""Where the chat template of SmolLM2-135M-Instruct helps: letter and cloze, letter also after a short training.

OMP_NUM_THREADS=1 python studies/settings/chat_template/measure.py studies/settings/chat_template/smollm2.jsonl

On `DEV` dev items of each task, never on the test split. One line per measurement is appended as it ends; what the file
already holds is skipped. `letter_mass` is the probability that the letters have among all tokens.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

import bayeslora
from bayeslora.methods import Lora
from bayeslora.metrics import summary
from bayeslora.models import load_base_model
from bayeslora.runs import task_items, train
from bayeslora.runs.config import ModelConfig, RunConfig, TaskConfig, TrainConfig
from bayeslora.runs.loading import scoring_of

DEV = 100
TRAIN: dict[str, Any] = {"train_examples": 160, "epochs": 3, "learning_rate": 5e-4, "last_layers": 8}
"""Of the short training; batches of 8 items, 60 steps."""


def task(name: str, scoring: Any, chat_template: bool, **options: Any) -> TaskConfig:
    """A built-in task under one scoring, with or without the template."""
    return TaskConfig(name=name, scoring=scoring, chat_template=chat_template, dev_examples=DEV, **options)


def scores(predictive: bayeslora.Predictive, items: list[Any]) -> dict[str, float]:
    """Accuracy, mean NLL (nats) and ECE."""
    found = summary(predictive.probabilities, torch.tensor([item.label for item in items]))
    return {name: round(float(found[name]), 4) for name in ("accuracy", "nll", "ece")}


def letter_mass(model: Any, batch: Any) -> torch.Tensor:
    """Probability of the letters of an item's choices among all tokens [batch]."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
    logits = model(**inputs, logits_to_keep=1).logits[:, -1].float()
    letters = logits.index_select(-1, batch["class_token_ids"]).masked_fill(~batch["choice_mask"], -torch.inf)
    return (letters.logsumexp(-1) - logits.logsumexp(-1)).exp()


@torch.no_grad()
def zero_shot(model: Any, tokenizer: Any, config: TaskConfig) -> dict[str, Any]:
    """Scores of the untrained model."""
    items = task_items(config).dev
    items.sort(key=lambda item: len(item.question))
    scoring, parts, masses = scoring_of(config, tokenizer, config.max_length), [], []
    for first in range(0, len(items), 10):
        batch = scoring(items[first : first + 10])
        parts.append(bayeslora.predict(model, batch, num_samples=0))
        if config.scoring == "letter":
            masses.append(letter_mass(model, batch))
    found: dict[str, Any] = scores(bayeslora.Predictive.concatenate(parts), items)
    return found | ({"letter_mass": round(torch.cat(masses).mean().item(), 4)} if masses else {})


def trained(config: TaskConfig) -> dict[str, Any]:
    """Scores after a short training of LoRA in the upper layers."""
    config.train_examples = TRAIN["train_examples"]
    run = RunConfig(
        model=ModelConfig(name="offline:smollm2", dtype="float32", device="cpu"),
        task=config,
        method=Lora(r=8, last_layers=TRAIN["last_layers"]),
        train=TrainConfig(epochs=TRAIN["epochs"], learning_rate=TRAIN["learning_rate"]),
        num_samples=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        finished = train(run, Path(folder) / "run")
    return {name: round(finished.metrics[name], 4) for name in ("accuracy", "nll", "ece")} | {"training": TRAIN}


def main(path: Path) -> None:
    """Measure what `path` does not hold yet."""
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    model, tokenizer = load_base_model("offline:smollm2", dtype="float32", device="cpu")
    for stage, scoring, name in (
        ("zero-shot", "letter", "arc_easy"),
        ("zero-shot", "letter", "openbookqa"),
        ("zero-shot", "cloze", "arc_easy"),
        ("zero-shot", "cloze", "openbookqa"),
        ("trained", "letter", "arc_easy"),
    ):
        for template in (False, True):
            key = {"stage": stage, "scoring": scoring, "task": name, "chat_template": template}
            if any(key.items() <= record.items() for record in done):
                continue
            config = task(name, scoring, template)
            found = zero_shot(model, tokenizer, config) if stage == "zero-shot" else trained(config)
            with path.open("a") as file:
                file.write(json.dumps({**key, "dev_items": DEV, **found}) + "\n")
            print(key, found, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    main(parser.parse_args().output)

"""A tiny base model for decision models, and records whose labels their words give away."""

import json
import random
import string
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from bayeslora.tasks.decisions import Record
from bayeslora.tasks.decisions.records import parse_record
from conftest import byte_level_tokenizer, tiny_llama

QUESTIONS = {
    "metal": {"type": "noul", "instructions": "Is it a metal?"},
    "kind": {"type": "choice", "instructions": "Which?", "criteria": {"iron": None, "wood": "trees", "glass": None}},
    "many": {"type": "score", "instructions": "How many?", "criteria": ["none", "one", "two"]},
}
THINGS = ("iron", "wood", "glass")


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """The state says its thing and its number; labels follow from them."""
    generator = random.Random(seed)
    made = []
    for index in range(count):
        thing, number = generator.choice(THINGS), generator.randrange(3)
        noise = "".join(generator.choices(string.ascii_lowercase, k=3))
        state = f"{noise} {thing} {thing} {thing} {'xyz'[number] * 6} {index}"
        labels = {"metal": thing == "iron", "kind": thing, "many": number}
        made.append({"state": state, "questions": QUESTIONS, "labels": labels})
    return made


def records(count: int, seed: int = 0) -> list[Record]:
    return [parse_record(row) for row in rows(count, seed)]


def write(path: Path, made: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


def trains(base: str, data: Path, output: Path, scoring: str, *options: str) -> list[str]:
    """A call of `bayeslora train` with an adapter below this scoring."""
    return [
        *("train", "--model.name", base, "--model.dtype", "float32", "--model.device", "cpu"),
        *("--task.name", str(data), "--task.scoring", scoring, "--method", "Lora", "--method.r", "2"),
        *("--train.epochs", "1", "--output_dir", str(output), *options),
    ]


def tiny_base(folder: Path) -> str:
    """Writes it to `folder`, which it gives back as a model's name."""
    tokenizer = byte_level_tokenizer(260)
    tokenizer.add_tokens([AddedToken(f" {label}", normalized=False) for label in string.ascii_uppercase])
    tiny_llama(vocab_size=len(tokenizer), max_position_embeddings=512, num_hidden_layers=6).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)

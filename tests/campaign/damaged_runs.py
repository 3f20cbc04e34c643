"""Finished runs with one damage each, opened by `bayeslora predict`, `evaluate` and `export`."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from campaign.calls import call
from campaign.outcome import Attempt, judged
from campaign.world import World

Damage = Callable[[Path, random.Random], tuple[str, list[tuple[str, ...]]]]

_FILES = ("metrics.json", "adapter/adapter_config.json", "adapter/adapter_model.safetensors")


def damaged_runs(world: World, run: Path, count: int, source: random.Random) -> Iterator[Attempt]:
    """`count` copies of `run`, each damaged in another way."""
    for number in range(count):
        damage = source.choice(_DAMAGES)
        copy = world.folder / f"damaged-{number}"
        shutil.copytree(run, copy, ignore=shutil.ignore_patterns("checkpoints"))
        what, named = damage(copy, source)
        new, out = world.folder / "new.jsonl", world.folder / f"out-{number}.jsonl"
        arguments: list[object] = source.choice(
            [
                ["predict", copy, "--input", new, "--output", out],
                ["evaluate", copy],
                ["export", copy, "--format", "mean", "--output_dir", world.folder / f"export-{number}"],
            ]
        )
        done = call(*arguments)
        yield judged("damaged run", f"{what} to {arguments[0]} ({number})", done.status, done.said, named)
        shutil.rmtree(copy)


def _edited(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _missing(run: Path, source: random.Random) -> tuple[str, list[tuple[str, ...]]]:
    name = source.choice(
        ["config.yaml", "metrics.json", "adapter/adapter_config.json", "adapter/adapter_model.safetensors"]
    )
    (run / name).unlink()
    return f"missing {name}", [(Path(name).name,)]


def _cut(run: Path, source: random.Random) -> tuple[str, list[tuple[str, ...]]]:
    name = source.choice(_FILES)
    content = (run / name).read_bytes()
    (run / name).write_bytes(content[: source.randrange(len(content) - 1)])
    return f"cut {name}", [(Path(name).name,)]


def _other_json(run: Path, source: random.Random) -> tuple[str, list[tuple[str, ...]]]:
    name = source.choice(["metrics.json", "adapter/adapter_config.json"])
    text = source.choice(["[]", "null", "7", '"text"', "{}" if "adapter" in name else "[1]"])
    (run / name).write_text(text)
    return f"{text} as {name}", [(Path(name).name,)]


def _tensors(run: Path, source: random.Random) -> tuple[str, list[tuple[str, ...]]]:
    path = run / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    key = source.choice(sorted(tensors))
    kind = source.choice(["none", "missing", "renamed", "nan", "inf", "shape"])
    if kind == "none":
        tensors = {}
    elif kind == "missing":
        del tensors[key]
    elif kind == "renamed":
        tensors[key.replace("layers", "layer")] = tensors.pop(key)
    elif kind in ("nan", "inf"):
        tensors[key].view(-1)[0] = float(kind)
    else:
        tensors[key] = torch.zeros(*tensors[key].shape[:-1], tensors[key].shape[-1] + 1)
    save_file(tensors, path)
    named = [("adapter_model.safetensors",)]
    if kind in ("missing", "renamed", "nan", "inf", "shape"):
        # PEFT's own message has the adapter's name inside.
        named.append((key, key.rpartition(".")[0]))
    return f"{kind} tensors", named


def _adapter_field(run: Path, source: random.Random) -> tuple[str, list[tuple[str, ...]]]:
    name, value = source.choice(
        [
            ("peft_type", "NO_SUCH"),
            ("peft_type", "LORA"),
            ("peft_type", None),
            ("r", 0),
            ("r", -2),
            ("r", "two"),
            ("r", 3),
            ("lora_alpha", float("nan")),
            ("lora_alpha", "x"),
            ("lora_alpha", None),
            ("prior_std", -1),
            ("prior_std", float("nan")),
            ("posterior", "diagonel"),
            ("target_modules", ["no_such"]),
            ("layers_to_transform", [99]),
        ]
    )
    _edited(run / "adapter" / "adapter_config.json", lambda content: content.__setitem__(name, value))
    return f"adapter {name}={value!r}", [(name, "adapter_model.safetensors"), ("adapter",)]


def _temperature(run: Path, source: random.Random) -> tuple[str, list[tuple[str, ...]]]:
    value = source.choice([0, -1, float("nan"), float("inf"), "warm", None, [1]])
    _edited(run / "metrics.json", lambda content: content.__setitem__("temperature", value))
    return f"temperature={value!r}", [("metrics.json",), ("temperature",)]


def _config(run: Path, source: random.Random) -> tuple[str, list[tuple[str, ...]]]:
    import yaml

    path = run / "config.yaml"
    content = yaml.safe_load(path.read_text())
    kind = source.choice(["syntax", "key", "type", "class", "cut", "list"])
    if kind == "syntax":
        path.write_text("model: {name: [\n")
    elif kind == "list":
        path.write_text("- 1\n- 2\n")
    elif kind == "cut":
        text = path.read_text()
        path.write_text(text[: len(text) // 2] + "\n  : [")
    else:
        if kind == "key":
            content["no_such"] = 1
        elif kind == "type":
            content["num_samples"] = "many"
        else:
            content["method"]["class_path"] = source.choice(["collections.Counter", "no.such.Method", "Bayes"])
        path.write_text(yaml.safe_dump(content))
    return f"config {kind}", [("config.yaml",)]


_DAMAGES: tuple[Damage, ...] = (_missing, _cut, _other_json, _tensors, _tensors, _adapter_field, _temperature, _config)

"""Configs with one fault each: names, types, ranges, nulls, values, syntax."""

import random
import shutil
from collections.abc import Iterator
from typing import Any

from campaign.calls import call
from campaign.outcome import Attempt, judged
from campaign.world import World

Path = tuple[str, ...]

_NUMBERS: dict[Path, tuple[Any, ...]] = {
    ("train", "batch_size"): (0, -1, 2.5, float("nan")),
    ("train", "epochs"): (-1, float("nan"), float("inf")),
    ("train", "max_steps"): (-3, 1.5),
    ("train", "learning_rate"): (0, -0.1, float("nan"), float("inf"), 1e9),
    ("train", "warmup"): (-0.1, float("nan")),
    ("train", "weight_decay"): (-1, float("nan")),
    ("train", "label_smoothing"): (-0.1, 1.5, float("nan")),
    ("train", "gradient_accumulation_steps"): (0, -2),
    ("train", "max_grad_norm"): (-1, float("nan")),
    ("train", "logging_steps"): (0, -1),
    ("train", "save_steps"): (0, -1),
    ("train", "cache_trunk_limit"): (-1,),
    ("train", "arguments", "adam_beta1"): (1, -0.1, float("nan")),
    ("train", "arguments", "adam_epsilon"): (-1e-8, float("inf")),
    ("train", "arguments", "warmup_steps"): (-1, float("nan")),
    ("train", "arguments", "weight_decay"): (-1, 1e9),
    ("train", "arguments", "max_grad_norm"): (-1, float("nan")),
    ("train", "arguments", "gradient_accumulation_steps"): (0, 1.5),
    ("train", "arguments", "save_total_limit"): (0, -3),
    ("train", "arguments", "data_seed"): (-1, 2**40),
    ("task", "train_examples"): (0, -5),
    ("task", "dev_examples"): (0, -5),
    ("task", "test_examples"): (0, -5),
    ("task", "max_length"): (0, -1),
    ("seed",): (-1,),
    ("num_samples",): (-1,),
    ("batch_size",): (0, -1),
    ("method", "init_args", "r"): (0, -4),
    ("method", "init_args", "lora_alpha"): (-1, 0, float("nan")),
    ("method", "init_args", "lora_dropout"): (-0.1, 1.0, 1.5),
    ("method", "init_args", "last_layers"): (0, -1, 99),
    ("method", "init_args", "prior_std"): (0, -0.1, float("nan")),
    ("method", "init_args", "posterior_std"): (0, -1, float("nan")),
    ("method", "init_args", "inducing_std"): (0, -1),
    ("method", "init_args", "beta"): (-1, float("nan")),
    ("method", "init_args", "kl_warmup"): (-0.5, 2.0, float("nan")),
    ("method", "init_args", "posterior_learning_rate_scale"): (-1, float("nan"), 1e9),
    ("method", "init_args", "train_samples"): (0, -1),
}
_CHOICES: dict[Path, str] = {
    ("task", "scoring"): "leter",
    ("task", "source"): "onlin",
    ("task", "name"): "arc_eazy",
    ("model", "name"): "no-such-folder/at-all",
    ("model", "dtype"): "float23",
    ("model", "device"): "cude",
    ("model", "quantization"): "bnb_5bit",
    ("train", "optimizer"): "adamx",
    ("train", "lr_scheduler"): "lineer",
    ("method", "class_path"): "BayesianLore",
    ("method", "init_args", "posterior"): "diagonel",
    ("method", "init_args", "placement"): "top_haf",
    ("method", "init_args", "mean"): "lara",
    ("method", "init_args", "init_from"): "no-such-run",
}
_OPTIONAL = ("max_steps", "save_steps", "last_layers", "inducing_std", "save_total_limit", "data_seed")
_REQUIRED: tuple[Path, ...] = (
    *(path for path in _NUMBERS if path[-1] not in _OPTIONAL and "examples" not in path[-1]),
    ("model", "name"),
    ("task", "name"),
    ("task", "scoring"),
    ("model",),
    ("task",),
    ("train",),
    ("method",),
)
_SYNTAX = (
    "train: {batch_size: 4",
    "model: [1, 2",
    'seed: "0',
    "train:\n\tbatch_size: 4",
    "- a\n- list",
    "just text",
    "",
)
_OPEN = (("train", "arguments"), ("train", "optimizer_options"), ("method", "init_args", "posterior_options"))


def config_errors(world: World, count: int, source: random.Random) -> Iterator[Attempt]:
    """`count` calls of `bayeslora train`, each with another fault."""
    kinds = (_misspelt, _wrong_type, _out_of_range, _null, _wrong_name, _syntax, _object)
    seen: set[str] = set()
    while len(seen) < count:
        what, text, named = source.choice(kinds)(world, source)
        if what in seen:
            continue
        seen.add(what)
        path = world.folder / "bad.yaml"
        path.write_text(text, encoding="utf-8")
        shutil.rmtree(world.folder / "bad-run", ignore_errors=True)
        done = call("train", "--config", path, "--output_dir", world.folder / "bad-run")
        attempt = judged("config", what, done.status, done.said, [*named, ("bad.yaml",)])
        yield attempt


Fault = tuple[str, str, list[tuple[str, ...]]]


def _misspelt(world: World, source: random.Random) -> Fault:
    """An option's name with a letter too few, too many or exchanged."""
    path = source.choice([*_NUMBERS, *_CHOICES])
    name = path[-1]
    at = source.randrange(len(name))
    letter = source.choice("abcdefghijklmnopqrstuvwxyz")
    wrong = source.choice(
        (name[:at] + name[at + 1 :], name[:at] + letter + name[at:], name[:at] + letter + name[at + 1 :])
    )
    if wrong == name or not wrong:
        wrong = name + "s"
    return f"name {'.'.join((*path[:-1], wrong))}", _with(world, (*path[:-1], wrong), 1), [(wrong,)]


def _wrong_type(world: World, source: random.Random) -> Fault:
    path = source.choice(list(_NUMBERS))
    value = source.choice(["many", [1, 2, 3], {"a": 1}, "1 2", [], True] if len(path) > 1 else ["many", [1], {"a": 1}])
    return f"type {'.'.join(path)}={value!r}", _with(world, path, value), [(path[-1],)]


def _out_of_range(world: World, source: random.Random) -> Fault:
    path = source.choice(list(_NUMBERS))
    value = source.choice(_NUMBERS[path])
    return f"range {'.'.join(path)}={value!r}", _with(world, path, value), [(path[-1],)]


def _null(world: World, source: random.Random) -> Fault:
    path = source.choice(_REQUIRED)
    return f"null {'.'.join(path)}", _with(world, path, None), [(path[-1],)]


def _wrong_name(world: World, source: random.Random) -> Fault:
    path = source.choice(list(_CHOICES))
    wrong = _CHOICES[path] + source.choice(["", "", "x", "_2"])
    return f"value {'.'.join(path)}={wrong!r}", _with(world, path, wrong), [(wrong, path[-1])]


def _syntax(world: World, source: random.Random) -> Fault:
    broken = source.choice(_SYNTAX)
    lines = world.write("good.yaml", world.config).read_text().splitlines()
    at = source.randrange(len(lines) + 1)
    text = broken if source.random() < 0.4 else "\n".join([*lines[:at], broken, *lines[at:]])
    if not broken:
        text = "{}\n" if source.random() < 0.5 else "[]\n"
        text = text.replace("{}", "42")
    return f"syntax {broken!r} at {at if text != broken else 'all'}", text, []


def _object(world: World, source: random.Random) -> Fault:
    """An object of the file's choosing in an open option."""
    path = source.choice(_OPEN)
    kind = source.choice(["campaign.outcome.Attempt", "pathlib.Path", "collections.Counter"])
    value = {"class_path": kind, "init_args": {}}
    inside = source.choice([value, {"deep": value}])
    return f"object {'.'.join(path)} {kind} {inside is value}", _with(world, path, inside), [(path[-1],)]


def _with(world: World, path: Path, value: Any) -> str:
    import yaml

    config = world.config
    place = config
    for name in path[:-1]:
        place = place.setdefault(name, {})
    place[path[-1]] = value
    return yaml.safe_dump(config)

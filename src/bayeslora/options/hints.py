"""The right name for a wrong one: by meaning, else the nearest by spelling."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

_ALSO_CALLED: dict[str, str] = {
    "learning_rate": "lr",
    "epochs": "epoch n_epochs num_epochs num_train_epochs",
    "max_steps": "steps n_steps num_steps",
    "train.batch_size": "train_batch_size per_device_train_batch_size",
    "batch_size": "bs eval_batch_size per_device_eval_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation grad_accum accumulation",
    "optimizer": "optim",
    "lr_scheduler": "scheduler schedule lr_scheduler_type",
    "warmup": "warmup_ratio warmup_steps",
    "weight_decay": "wd",
    "max_grad_norm": "clip grad_clip gradient_clipping",
    "r": "rank lora_r lora_rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "targets modules",
    "last_layers": "layers num_layers",
    "model.name": "model base base_model model_id model_name model_name_or_path pretrained_model",
    "model.quantization": "quantize load_in_4bit load_in_8bit",
    "run": "model adapter checkpoint folder",
    "task.name": "data dataset dataset_name task tasks train_file",
    "task": "data dataset dataset_name tasks",
    "tasks": "data dataset task",
    "output_dir": "out out_dir outdir output output_file output_folder save_dir folder",
    "output": "out outfile output_dir output_file",
    "input": "in data dataset file items test_file",
    "num_samples": "samples n_samples mc_samples draws num_draws posterior_samples",
    "examples": "limit num_examples max_examples",
    "test_examples": "examples limit num_examples max_examples",
    "max_new_tokens": "max_tokens max_length tokens length",
    "device": "gpu cuda cpu",
    "model.device": "gpu cuda cpu",
    "dtype": "precision torch_dtype bf16 fp16",
    "overwrite": "force",
    "resume": "resume_from_checkpoint continue",
    "gpu_memory": "memory vram",
    "repo_id": "repo hub_id",
}
"""Names of options, each with what people who come from other tools call it; the likelier stand first."""

_UNKNOWN = {
    "method option": (r"[Pp]arser key \"method\":\s+Option '([\w.]+)' is not",),
    "option": (
        r"(?:[Kk]ey|[Oo]ption|[Gg]roup) '([\w.]+)' is not (?:expected|accepted)",
        r"does not accept option '([\w.]+)'",
    ),
    "group": (r"[Pp]arser key \"([\w.]+)\":\s+Unable to load config",),
    "method": (r"dot import path string: ([\w.]+)", r"class_path '([\w.]+)'"),
    "command": (r"invalid choice: '?([\w-]+)'?",),
}
"""What is unknown, by the errors of the parser that say so."""


@dataclass(frozen=True)
class Names:
    """The right names of a call."""

    options: Sequence[str] = ()
    """Dotted, without dashes."""
    commands: Sequence[str] = ()
    methods: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Class names of methods, each with the names of its options."""

    def of(self, kind: str) -> list[str]:
        """The names of a kind of thing: "option", "group" (of options), "method option", "method" or "command"."""
        in_methods = dict.fromkeys(f"method.{name}" for names in self.methods.values() for name in names)
        kinds = {"option": [*self.options, *in_methods], "method option": list(in_methods)}
        kinds["group"] = [name for name in self.options if "." in name]
        return {**kinds, "method": list(self.methods), "command": list(self.commands)}[kind]


def nearest(wrong: str, right: Iterable[str]) -> str | None:
    """The name that was meant, None where none is near.

    Args:
        wrong: Such as "lr", "train.lr" or "num-samples".
        right: The names there are, such as "train.learning_rate".
    """
    names = {_plain(name): name for name in right}
    group, _, last = _plain(wrong).rpartition(".")
    meant = [last, *(_plain(name) for name, others in _ALSO_CALLED.items() if last in map(_plain, others.split()))]
    for meaning in meant:
        found = [name for name in names if f".{name}".endswith(f".{meaning}")]
        if found:
            return names[min(found, key=lambda name: (name.rpartition(".")[0] != group, name.count("."), len(name)))]
    beside = {name.rpartition(".")[2]: name for name in names if group and name.rpartition(".")[0] == group}
    if close := difflib.get_close_matches(last, beside, n=1):
        return names[beside[close[0]]]
    if not beside and (close := difflib.get_close_matches(_plain(wrong), names, n=1)):
        return names[close[0]]
    parts = {name.rpartition(".")[2]: name for name in reversed(names)}
    return names[parts[close[0]]] if (close := difflib.get_close_matches(last, parts, n=1, cutoff=0.75)) else None


def hint(message: str, names: Names) -> str:
    """What to say after an error message of the parser; "" where nothing is unknown, or the message has a hint."""
    if found := re.match(r"[Uu]nrecognized arguments: (.*)", message, re.DOTALL):
        return _hint_for_arguments(found[1].split(), names)
    if "Did you mean" in message or "Correct its name" in message:
        return ""
    for kind, patterns in _UNKNOWN.items():
        for pattern in patterns:
            found = re.search(pattern, message)
            if found is None or found[1] in names.of(kind):
                continue
            right = nearest(f"method.{found[1]}" if kind == "method option" else found[1], names.of(kind))
            return f" Did you mean {right!r}?" if right else " Correct its name, or leave it out."
    return ""


def _hint_for_arguments(arguments: Sequence[str], names: Names) -> str:
    """Of arguments that no option takes: the option that each could have been."""
    wrong = [argument.partition("=")[0] for argument in arguments if re.match(r"--?[A-Za-z]", argument)]
    right = {name: nearest(name.lstrip("-"), names.of("option")) for name in wrong}
    known = {name: f"'--{option}'" for name, option in right.items() if option is not None}
    if not wrong and "config" in names.options and arguments[0].endswith((".yaml", ".yml")):
        return f" Did you mean '--config {arguments[0]}'?"
    if not known:
        return " Correct its name, or leave it out." if wrong else ""
    if len(wrong) == 1:
        return f" Did you mean {known[wrong[0]]}?"
    return f" Did you mean {', '.join(f'{option} (for {name})' for name, option in known.items())}?"


def _plain(name: str) -> str:
    """A name without what people spell differently: case, and what stands between words."""
    return re.sub(r"[-_ ]", "", name.lower())

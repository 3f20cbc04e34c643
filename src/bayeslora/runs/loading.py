"""The base model of a run, and the scoring that reads it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from bayeslora.adapters.files import require_supplied, tensors_file
from bayeslora.adapters.from_lora import adapter_folder
from bayeslora.adapters.merging import merged
from bayeslora.adapters.starts import open_adapter
from bayeslora.models import load_base_model, load_tokenizer
from bayeslora.models.number_type import number_type
from bayeslora.models.positions import readable_tokens
from bayeslora.runs.config import ModelConfig, TaskConfig, TrainConfig
from bayeslora.scoring import SCORINGS, Cloze, Scoring, get_scoring
from bayeslora.scoring.codes import CodeScoring, Template
from bayeslora.scoring.codes.items import DecisionScoring
from bayeslora.scoring.codes.prompts import NO_LIMIT
from bayeslora.system.devices import choose_device
from bayeslora.system.processes import init_processes
from bayeslora.system.reading import naming_file


def load_model(
    config: ModelConfig, task: TaskConfig, num_labels: int | None = None, *, trained: bool = False
) -> tuple[nn.Module, PreTrainedTokenizerBase, Scoring]:
    """The base model on this process's device, with the adapters of `config.merge` in it, its tokenizer, and the
    scoring that reads it.

    Args:
        config: The base model.
        task: The items.
        num_labels: Width of a classification head.
        trained: Whether it is that of a run which was trained before, and said what there is to say of it.

    Raises:
        ValueError: `config.device` is not here.
    """
    # Before the processes are joined: those without a GPU would go on together on the CPU.
    choose_device(config.device)
    scoring = get_scoring(task.scoring)
    base, tokenizer = load_base_model(
        config.name,
        kind=scoring.kind,
        dtype=number_type(config.dtype, config.name, config.device, say=not trained),
        device=init_processes(config.device),
        revision=config.revision,
        quantization=config.quantization,
        num_labels=num_labels if scoring.kind == "sequence_classification" else None,
    )
    model: Any = merge_adapters(base, config.merge)
    readable = readable_tokens(model)
    reader = scoring_of(task, tokenizer, _longest(task, readable))
    reader.extensible = readable is None or task.max_length < readable
    return model, tokenizer, reader


def _longest(task: TaskConfig, readable: int | None) -> int:
    """Tokens of a prompt; where nothing is cut, the default is no limit."""
    if get_scoring(task.scoring).of_decisions and task.max_length == TaskConfig.max_length:
        return readable or NO_LIMIT
    return min(task.max_length, readable or task.max_length)


def load_adapted(
    config: ModelConfig,
    task: TaskConfig,
    adapter: Path,
    prepare: Callable[[nn.Module, Scoring], None] | None = None,
) -> tuple[PeftModel, Scoring]:
    """The trained adapter in the folder `adapter` on the base model that `config` describes, and the scoring.

    Args:
        config: The base model's.
        task: How it is read.
        adapter: The folder.
        prepare: Called with base model and scoring before the adapter is on.

    Raises:
        ValueError: Weights that the base model's checkpoint does not hold are in no adapter.
    """
    base, _, scoring = load_model(config, task, num_labels=head_width(adapter), trained=True)
    require_supplied(base, [*map(adapter_folder, config.merge), adapter])
    if prepare is not None:
        prepare(base, scoring)
    return open_adapter(base, adapter), scoring


def scoring_of(task: TaskConfig, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Scoring:
    """The scoring that a task's config asks for, with the classes that it names, in the chat template or not.

    Raises:
        ValueError: The chat template is asked for, but the tokenizer has none or the scoring asks no questions.
    """
    scoring = get_scoring(task.scoring)
    chat = uses_chat_template(task, tokenizer)
    if scoring.takes_classes:
        return scoring(tokenizer, max_length, classes=task.classes or task.choices)  # type: ignore[call-arg]
    if scoring.of_decisions:
        asked: dict[str, Any] = {"template": Template.stored(task.template), "ranked": task.ranked}
        if issubclass(scoring, CodeScoring):
            asked |= {"orders": task.orders, "shuffles": task.shuffles}
        return scoring(tokenizer, max_length, chat_template=chat, **asked)
    if task.length_power == 1:
        return scoring(tokenizer, max_length, chat_template=chat)
    if task.scoring != "cloze":
        raise ValueError(f"task.length_power is for scoring cloze, not for {task.scoring}; leave it out.")
    # What is to be chosen is the papers' until then.
    power = 1.0 if task.length_power == "auto" else task.length_power
    return Cloze(tokenizer, max_length, chat_template=chat, length_power=power)


def uses_chat_template(task: TaskConfig, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether prompts are put into the chat template of `tokenizer`: what `task` says or, at "auto", for letters.

    A letter is what an instruct model answers in a chat, and seldom in a plain text, before it is trained on either;
    the likelihood of a choice's own words has no clear gain (studies/settings/chat_template).

    Raises:
        ValueError: The chat template is asked for with a scoring that has no prompts.
    """
    scoring = get_scoring(task.scoring)
    if task.chat_template == "auto":
        return scoring.templated_by_default and bool(tokenizer.chat_template)
    if task.chat_template and not scoring.templated:
        asking = " and ".join(kind.name for kind in reversed(SCORINGS.classes()) if kind.templated)
        raise ValueError(
            f"task.chat_template is for scoring {asking}, which ask a question, not for {task.scoring}"
            f"{', where task.raw decides' if task.scoring == 'text' else ''}; leave it out."
        )
    return task.chat_template


def with_prompt(task: TaskConfig, model: ModelConfig, train: Iterable[Any]) -> TaskConfig:
    """`task` with its prompt written down: all its texts, and whether the tokenizer's chat template is around them.

    Args:
        task: Of a run.
        model: Of the run.
        train: The training items, whose questions heads announce.
    """
    scoring = get_scoring(task.scoring)
    if issubclass(scoring, DecisionScoring):
        template = Template.of(task.template)
        if scoring.announces:
            template = template.announcing(item.asked for item in train)
        task = replace(task, template=template.to_dict())
    if task.chat_template != "auto":
        return task
    used = scoring.templated_by_default and uses_chat_template(task, load_tokenizer(model.name, model.revision))
    return replace(task, chat_template=used)


def merge_adapters(model: nn.Module, adapters: Iterable[str | Path]) -> nn.Module:
    """Add the mean of each adapter to the weights of `model`, in place and in order; saved heads replace the old one.

    Args:
        model: The base model, without adapters.
        adapters: Adapter folders, or run folders that hold them.

    Raises:
        FileNotFoundError: There is no adapter in one of the folders.
        NotImplementedError: The mean of an adapter is no matrix (C-LoRA).
    """
    for adapter in adapters:
        folder = Path(adapter_folder(adapter))
        if not (folder / "adapter_config.json").is_file():
            raise FileNotFoundError(
                f"there is no adapter to merge in {adapter}: expected a run folder, or a folder with "
                "adapter_config.json. Was it moved apart from the run that is built on it?"
            )
        model = merged(open_adapter(model, folder))
    return model


def features_folder(train: TrainConfig, output: Path) -> str | Path | None:
    """Where a run in the folder `output` keeps the features that heads read; None: in memory."""
    return (train.cache_trunk_folder or output / "features") if train.cache_trunk else None


def merge_resolved(config: ModelConfig, run: Path) -> ModelConfig:
    """`config` with the paths of `merge` that are relative to the run folder `run` as they are from here."""
    # normpath: `run` itself may not be there yet.
    beside = {path: os.path.normpath(run / path) for path in config.merge}
    return replace(config, merge=[there if Path(there).exists() else path for path, there in beside.items()])


def head_width(adapter: Path) -> int | None:
    """Classes of the saved classification head, if the adapter holds one."""
    from safetensors import safe_open

    path = tensors_file(adapter)
    with naming_file(path), safe_open(path, "pt") as file:
        heads = [key for key in file.keys() if key.endswith(_HEADS) and not re.search(r"\.\d+\.", key)]  # noqa: SIM118
        return int(file.get_slice(heads[0]).get_shape()[0]) if heads else None


_HEADS = (".classifier.weight", ".score.weight", ".out_proj.weight", ".logits_proj.weight")
"""Last maps of classification heads, which are outside of all numbered layers."""

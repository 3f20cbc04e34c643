"""What is diagnosed: a run of this package, or any PEFT adapter with its base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from peft import PeftConfig

from bayeslora.adapters.files import read_adapter_config
from bayeslora.adapters.from_lora import adapter_folder
from bayeslora.adapters.starts import changes_base
from bayeslora.methods import Lora, Method, method_classes
from bayeslora.runs import Run, load_run
from bayeslora.runs.config import ModelConfig, RunConfig, TaskConfig
from bayeslora.runs.loading import load_adapted
from bayeslora.system.locating import run_folder

_SCORINGS: dict[str, Literal["cloze", "classification"]] = {"CAUSAL_LM": "cloze", "SEQ_CLS": "classification"}


def load_adapter(source: str | Path, base_model: str | None = None, device: str | None = None) -> tuple[Run, bool]:
    """An adapter on its base model.

    Args:
        source: A run folder, a PEFT adapter's folder, or the Hub id of one of them.
        base_model: Hub id or folder of the base model, in place of the one that is noted.
        device: As `bayeslora.load_run`; an adapter without a run is put on "auto" by default.

    Returns:
        The run, and whether it knows its task: an adapter without a run has a run made up for it, with the scoring that
        its task type asks for.

    Raises:
        FileNotFoundError: There is neither.
        ValueError: The adapter alone is not the difference to the base model (PiSSA and other such starts), its task
            type cannot be scored here, or no base model is known.
    """
    folder = run_folder(source)
    if (folder / "config.yaml").is_file() and (folder / "metrics.json").is_file():
        return load_run(source, base_model=base_model, device=device), True
    adapter = Path(adapter_folder(folder))
    if not (adapter / "adapter_config.json").is_file():
        raise FileNotFoundError(
            f"{source} is neither a run nor a PEFT adapter: adapter_config.json is missing. Expected the --output_dir "
            "of `bayeslora train`, a folder of PEFT's save_pretrained, or the Hub id of one."
        )
    config: Any = read_adapter_config(adapter)
    if changes_base(config):
        raise ValueError(
            f"the adapter was trained with init_lora_weights={config.init_lora_weights!r}, which changes the base "
            "weights; convert it to plain LoRA first (PEFT: save_pretrained with "
            "path_initial_model_for_weight_conversion)."
        )
    name = base_model or config.base_model_name_or_path
    if not name:
        raise ValueError(f"{source} does not say which base model it belongs to; name it with --base_model.")
    kind = getattr(config.task_type, "value", config.task_type) or "CAUSAL_LM"
    if kind not in _SCORINGS:
        raise ValueError(f"the adapter's task type is {kind}; expected one of {', '.join(_SCORINGS)}.")
    model_config = ModelConfig(name=name, device=device or "auto")
    run = RunConfig(model=model_config, task=TaskConfig(scoring=_SCORINGS[kind]), method=_method(config))
    model, scoring = load_adapted(run.model, run.task, adapter)
    return Run(config=run, model=model.eval(), scoring=scoring, metrics={}, state={}), False


def _method(config: PeftConfig) -> Method:
    """The method whose adapters have this config; plain LoRA where that is unknown."""
    for method in method_classes():
        if method.config_class is type(config) and method.config_class is not Lora.config_class:
            return method()
    return Lora()

"""A finished run, loaded from its folder or the Hub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import nn

from bayeslora.adapters.files import read_adapter_config
from bayeslora.adapters.from_lora import adapter_folder
from bayeslora.methods import Method
from bayeslora.options.classes import permit
from bayeslora.options.ranges import Positive, check_value
from bayeslora.runs.building import open_trunk_cache
from bayeslora.runs.config import ModelConfig, RunConfig
from bayeslora.runs.config_files import read_config
from bayeslora.runs.cross_fitting import read_above_adapters, read_by_heads, reading_of
from bayeslora.runs.heads import load_head_run
from bayeslora.runs.loading import load_adapted, merge_resolved
from bayeslora.runs.run import Run
from bayeslora.runs.state import load_state
from bayeslora.scoring import Scoring
from bayeslora.system.devices import kept_device
from bayeslora.system.files import recover_folder
from bayeslora.system.folders import recover_parts
from bayeslora.system.locating import is_hub_run, run_folder
from bayeslora.system.reading import read_json


def load_run(
    run: str | Path,
    *,
    revision: str | None = None,
    base_model: str | None = None,
    device: str | None = None,
    allow_method: str | None = None,
) -> Run:
    """Load the adapter of a run on its base model, in eval mode.

    Where the run kept its trunk cache in a folder (`train.cache_trunk_folder`), predictions read and fill it too.

    Args:
        run: The run folder; or the Hub id of a pushed run, `user/name` or `user/name@revision`, which is downloaded
            into the Hub's cache. A private one needs `hf auth login`.
        revision: Branch, tag or commit of a Hub id.
        base_model: Hub id or folder of the base model, in place of the name that the run gives.
        allow_method: Dotted path of a method outside of bayeslora that the run may name. It is imported; a run alone
            has nothing imported.
        device: "auto", "cpu", "cuda", "cuda:1", ...; default: where the run was trained, or "auto" if that is not here.

    Raises:
        ImportError: `allow_method` cannot be imported.
        FileNotFoundError: There is no such run, or its base model was a folder that is not here.
        ValueError: `device` is not here; the adapter belongs to another base model, was written by a newer version, or
            does not hold all weights that the base model's checkpoint lacks; a file of the run is damaged, or a number
            in it is not finite or out of its range.
    """
    if allow_method is not None:
        permit(Method, allow_method)
    folder = run_folder(run, revision)
    recover_parts(folder)
    recover_folder(folder / "adapter")
    adapter = Path(adapter_folder(folder))
    if (folder / "decision.json").is_file() and not (folder / "config.yaml").is_file():
        raise ValueError(
            f"{run} is a decision model, which has no items: ask it by `bayeslora decide` or `serve`, calibrate it by "
            "`bayeslora calibrate`, or load it by bayeslora.DecisionModel.load."
        )
    _require(run, folder / "config.yaml")
    config = read_config(folder / "config.yaml")
    # A head on frozen features has no adapter.
    weights = adapter / "adapter_config.json" if config.method.adapts else folder / "posterior.safetensors"
    _require(run, weights, folder / "metrics.json")
    metrics, state = read_json(folder / "metrics.json"), load_state(folder)
    temperature = metrics.get("temperature", 1.0)
    check_value(temperature, Positive, f"{folder / 'metrics.json'}: temperature")
    config.model = _base_model(config.model, base_model)
    config.model.device = kept_device(config.model.device) if device is None else device
    if not config.method.adapts:
        return load_head_run(config, folder, metrics)
    if not config.method.trains(stored := read_adapter_config(adapter)):
        raise ValueError(
            f"{adapter / 'adapter_config.json'}: peft_type is {stored.peft_type}, but config.yaml names the method "
            f"{config.method.name}, whose adapters have another; copy the run again from where it was written."
        )
    model, scoring = load_adapted(merge_resolved(config.model, folder), config.task, adapter, prepare=_heads_of(config))
    if reading := reading_of(scoring):
        read_above_adapters(model, reading)
        reading.restore(state)
    return Run(
        config=config,
        model=model,
        scoring=scoring,
        metrics=metrics,
        state=state,
        temperature=temperature,
        trunk_cache=open_trunk_cache(config, model) if config.train.cache_trunk_folder else None,
        folder=None if is_hub_run(run) else folder,
    )


def _heads_of(config: RunConfig) -> Callable[[nn.Module, Scoring], None]:
    """What lets heads read the batches of a run whose scoring they read."""

    def prepare(base: nn.Module, scoring: Scoring) -> None:
        if scoring.by_heads:
            read_by_heads(config, base, scoring, config.train.cache_trunk_folder)

    return prepare


def _require(run: str | Path, *files: Path) -> None:
    """The files without which a run is not finished."""
    for path in files:
        if not path.is_file():
            raise FileNotFoundError(
                f"{run} is not a finished run: {path.name} is missing. Expected the --output_dir of `bayeslora train`, "
                "or the Hub id of a run that was pushed by `bayeslora push`. An adapter alone loads with PEFT."
            )


def _base_model(named: ModelConfig, base_model: str | None) -> ModelConfig:
    """The base model to load: `base_model`, or the one that the run names."""
    if base_model is not None:
        return replace(named, name=base_model, revision=None)
    if named.name.startswith("./") and not Path(named.name).is_dir():
        raise FileNotFoundError(
            f"this run was trained on a base model in a folder, {named.name!r}, which is not here; put it there, or "
            "name it: bayeslora.load_run(..., base_model=FOLDER_OR_HUB_ID)."
        )
    return named

"""The base model of a plan: its config, and the model that config describes, on the meta device."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from bayeslora.models import locate
from bayeslora.models.heads import compute_in_float32, head_modules, note_new_weights
from bayeslora.planning.published import ARCHITECTURES


def known_architectures() -> tuple[str, ...]:
    """Hub ids whose architecture needs no network."""
    return tuple(ARCHITECTURES)


def find_architecture(name: str, file: str | Path | None = None, revision: str | None = None) -> PreTrainedConfig:
    """The config of a base model, without its weights.

    Args:
        name: Hub id, local folder or offline name, as in `model.name`.
        file: A config.json to use instead.
        revision: Branch, tag or commit of a Hub id.

    Raises:
        OSError: The model is not known here, no folder, and cannot be had from the Hub; or `file` does not exist.
        ValueError: `file` is not the config of a model that transformers knows.
    """
    if file is not None:
        return _from_file(Path(file))
    if name in ARCHITECTURES:
        return _from_fields(ARCHITECTURES[name])
    source = locate(name)
    try:
        return AutoConfig.from_pretrained(source, **({} if revision is None else {"revision": revision}))
    except (OSError, ValueError) as error:
        raise OSError(
            f"the architecture of {name!r} is not known without the Hub (known are {', '.join(ARCHITECTURES)}), and "
            f"reading it failed: {str(error).strip().partition(chr(10))[0]} Remedy: give the model's config.json with "
            "--architecture, or a local folder as model.name."
        ) from error


def _from_file(path: Path) -> PreTrainedConfig:
    if not path.is_file():
        raise FileNotFoundError(f"--architecture expects the config.json of a model, but {path} does not exist.")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"--architecture expects the config.json of a model, but {path} is not JSON: {error}"
        ) from None
    if not isinstance(fields, dict) or "model_type" not in fields:
        raise ValueError(f"--architecture expects the config.json of a model, but {path} has no model_type.")
    return _from_fields(fields)


def _from_fields(fields: Mapping[str, Any]) -> PreTrainedConfig:
    options = dict(fields)
    return AutoConfig.for_model(options.pop("model_type"), **options)


def base_on_meta(
    architecture: PreTrainedConfig,
    kind: str = "causal_lm",
    dtype: str = "auto",
    num_labels: int | None = None,
    *,
    layers: int | None = None,
    new: Mapping[str, str] | None = None,
) -> PreTrainedModel:
    """The base model on the meta device: every module, no bytes; a classifier's head in float32, as it is loaded.

    Args:
        architecture: From `find_architecture`.
        kind: "causal_lm" or "sequence_classification".
        dtype: Number type of the weights; "auto" is that of the config, else float32.
        num_labels: Outputs of a classification head.
        layers: Only the first so many transformer layers; of a model of several parts, those that read text.
        new: Weights of a classifier that its checkpoint does not hold, and why. Default: all of the head but a pooler
            inside of the backbone, as where a plain encoder or decoder is adapted.
    """
    stored = getattr(architecture, "dtype", None) or torch.float32
    precision = stored if dtype == "auto" else getattr(torch, dtype)
    head = {} if num_labels is None else {"num_labels": num_labels}
    fields = {**architecture.to_dict(), **head}
    if layers is not None:
        text = _text_fields(architecture, fields)
        text["num_hidden_layers"] = layers
        if text.get("layer_types") is not None:
            text["layer_types"] = text["layer_types"][:layers]
    config = type(architecture).from_dict(fields)
    for part in (config, config.get_text_config()):
        if getattr(part, "pad_token_id", None) is None:
            # Models with a classification head look for it in every batch.
            part.pad_token_id = 0
    auto: Any = AutoModelForCausalLM if kind == "causal_lm" else AutoModelForSequenceClassification
    with torch.device("meta"):
        model: PreTrainedModel = auto.from_config(config, dtype=precision)
    if kind == "sequence_classification":
        compute_in_float32(model, head_modules(model))
        note_new_weights(model, _usual_new_weights(model) if new is None else new)
    return model.eval()


def _usual_new_weights(model: Any) -> dict[str, str]:
    backbone = {id(parameter) for parameter in model.base_model.parameters()}
    drawn = [name for name, parameter in model.named_parameters() if id(parameter) not in backbone]
    return dict.fromkeys(drawn, "the checkpoint is not on this machine; most hold no such head")


def _text_fields(architecture: PreTrainedConfig, fields: dict[str, Any]) -> dict[str, Any]:
    """Those of `fields` that describe the part of the model that reads text: all, or one entry of them."""
    text = architecture.get_text_config()
    return next((fields[name] for name in fields if getattr(architecture, name, None) is text), fields)

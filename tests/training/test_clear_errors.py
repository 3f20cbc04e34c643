"""Damaged files beside the adapter: base models, checkpoints, results files, JSON; each error names the file."""

import json
import pickle
import shutil
from pathlib import Path

import pytest

from bayeslora.experiments.comparison.records import Header
from bayeslora.experiments.comparison.results import Results
from bayeslora.models import load_base_model
from bayeslora.system.reading import read_json, read_json_lines
from bayeslora.training.checkpoints import checkpoint_read, checkpoint_written
from conftest import byte_level_tokenizer, tiny_llama


class Marker:
    def __reduce__(self) -> tuple:
        return (pytest.fail, ("built",))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tokenizer = byte_level_tokenizer()
    tiny_llama(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_damaged_base_models(base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "cut"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"base model '.*cut' are cut or damaged"):
        load_base_model(str(folder))
    weights.unlink()
    for content in (pickle.dumps(Marker()), b"no pickle"):
        (folder / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(ValueError, match=r"base model '.*cut' are a pickle .* in safetensors"):
            load_base_model(str(folder))


def test_damaged_and_unwritten_checkpoints() -> None:
    for error in (
        pickle.UnpicklingError("x"),
        EOFError("x"),
        RuntimeError("PytorchStreamReader failed"),
        KeyError("x"),
    ):
        expected = pytest.raises(ValueError, match=r"checkpoint run/checkpoint-3 is damaged .* Remove that folder")
        with expected, checkpoint_read("run/checkpoint-3"):
            raise error
    for full in (
        OSError(28, "No space left on device"),
        RuntimeError("PytorchStreamWriter failed writing file"),
        Exception("No space left on device (os error 28)"),
    ):
        expected = pytest.raises(OSError, match=r"could not be written to run/checkpoints \(.*make room")
        with expected, checkpoint_written("run/checkpoints"):
            raise full
    with pytest.raises(LookupError, match="another"), checkpoint_written("run/checkpoints"):
        raise LookupError("another")


HEADER = {"kind": "header", "format_version": 1, "config": {}, "device": "cpu", "bayeslora": "0", "created": "now"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"versions": None}, r"header\.versions must not be null"),
        ({"versions": {}, "config": []}, r"header\.config must be a mapping"),
        ({"versions": {}, "device": 3}, r"header\.device must be a text"),
        ({}, "the header is not whole: .*versions"),
        ({"versions": {}, "extra": 1}, "the header is not whole: .*extra"),
    ],
)
def test_damaged_headers(change: dict, message: str, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(HEADER | change) + "\n")
    with pytest.raises(ValueError, match=rf"Line 1 of .*results\.jsonl: {message}"):
        Results.read(path)
    assert Header.now({}, "cpu").config == {}


def test_damaged_json(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    for text, message in (
        ("", "is no valid JSON"),
        ("[]", r"got \[\]"),
        ("null", "got None"),
        ("[" * 10**5, "no valid"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"some\.json .*{message}"):
            read_json(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"some\.json is no text"):
        read_json(path)
    path.write_text("{}\n3\n")
    with pytest.raises(ValueError, match=r"line 2 of .*some\.json"):
        read_json_lines(path)

"""Nothing that was there is lost: a full disk, a kill, at any moment of a save."""

import errno
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from peft import PeftModel
from torch import Tensor

from bayeslora import sampling
from bayeslora.system.files import atomic_file, atomic_folder, disk_is_full, recover_folder, save_adapter, write_json
from conftest import bayesian, distance, logits_of, perturb, tiny_llama
from other_processes import run_copy


def draws(model: PeftModel) -> Tensor:
    with sampling(model, 2, seed=7):
        return logits_of(model)


def loaded_draws(path: Path) -> Tensor:
    return draws(PeftModel.from_pretrained(tiny_llama(), path))


@pytest.fixture
def old() -> PeftModel:
    return bayesian()


@pytest.fixture
def new() -> PeftModel:
    return perturb(bayesian(), seed=22).eval()  # type: ignore[return-value]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_saving_over_an_older_adapter(old: PeftModel, new: PeftModel, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "adapter"
    save_adapter(old, path)
    assert distance(loaded_draws(path), draws(old)) < 1e-6
    save_adapter(new, path)
    assert distance(loaded_draws(path), draws(new)) < 1e-6
    assert distance(draws(new), draws(old)) > 0.1
    assert os.listdir(tmp_path / "deep") == ["adapter"]


def test_others_may_read_what_was_saved(old: PeftModel, tmp_path: Path) -> None:
    save_adapter(old, tmp_path / "adapter")
    assert (tmp_path / "adapter").stat().st_mode & 0o777 == 0o755
    write_json(tmp_path / "a.json", {})
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o644


def test_options_reach_save_pretrained(old: PeftModel, tmp_path: Path) -> None:
    old.add_adapter("second", old.peft_config["default"])
    save_adapter(old, tmp_path / "adapter", selected_adapters=["second"])
    assert not (tmp_path / "adapter" / "adapter_config.json").exists()
    assert (tmp_path / "adapter" / "second" / "adapter_config.json").exists()


# --- a full disk ---------------------------------------------------------------------------------------------------


def full_disk(write: Callable[..., None]) -> Callable[..., None]:
    """`write`, but half of the file is all that fits."""

    def fail(tensors: Any, filename: Any, *args: Any, **kwargs: Any) -> None:
        write(tensors, filename, *args, **kwargs)
        half = Path(filename).read_bytes()
        Path(filename).write_bytes(half[: len(half) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    return fail


@pytest.mark.parametrize("exists", [True, False])
def test_a_full_disk(
    exists: bool, old: PeftModel, new: PeftModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "adapter"
    if exists:
        save_adapter(old, path)
        before = contents(path)
    called = []
    write = full_disk(safetensors.torch.save_file)
    for module in ("safetensors.torch", "peft.peft_model"):
        name = "save_file" if module == "safetensors.torch" else "safe_save_file"
        monkeypatch.setattr(f"{module}.{name}", lambda *a, **k: (called.append(1), write(*a, **k)))
    with pytest.raises(OSError, match="No space left"):
        save_adapter(new, path)
    assert called == [1]
    assert os.listdir(tmp_path) == (["adapter"] if exists else [])
    if exists:
        assert contents(path) == before
        monkeypatch.undo()
        assert distance(loaded_draws(path), draws(old)) < 1e-6


@pytest.mark.parametrize("which", [0, 1])
def test_a_rename_that_fails(
    which: int, old: PeftModel, new: PeftModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Setting the old folder aside (0), or putting the new one in its place (1)."""
    path = tmp_path / "adapter"
    save_adapter(old, path)
    before, rename, calls = contents(path), os.rename, []

    def fail(source: Any, target: Any) -> None:
        calls.append((source, target))
        if len(calls) - 1 == which:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="Input/output"):
        save_adapter(new, path)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["adapter"]
    assert contents(path) == before


# --- a kill --------------------------------------------------------------------------------------------------------

KILLED = """
import os, sys
from pathlib import Path
import safetensors.torch, peft.peft_model
from conftest import bayesian, perturb
from bayeslora.system.files import save_adapter

root = Path(sys.argv[1])
old, new = bayesian(), perturb(bayesian(), seed=22).eval()

def die_after(function, calls):
    left = [calls]
    def wrapped(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            os._exit(9)
        return function(*args, **kwargs)
    return wrapped

def half(tensors, filename, **kwargs):
    with open(filename, "wb") as file:
        file.write(safetensors.torch.save(tensors)[:1000])
    os._exit(9)

for moment in ("weights", "0", "1"):
    path = root / moment / "adapter"
    save_adapter(old, path)
    child = os.fork()
    if child == 0:
        if moment == "weights":
            peft.peft_model.safe_save_file = half
        else:
            os.rename = die_after(os.rename, int(moment))
        save_adapter(new, path)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9, moment
"""


def test_a_kill(old: PeftModel, new: PeftModel, tmp_path: Path) -> None:
    """While the weights are written, before the old folder is set aside, and between the two renames."""
    done = run_copy(KILLED, tmp_path, str(tmp_path))
    assert done.returncode == 0, done.stderr
    for moment in ("weights", "0", "1"):
        path = tmp_path / moment / "adapter"
        assert path.exists() == (moment != "1")
        recover_folder(path)
        assert distance(loaded_draws(path), draws(old)) < 1e-6
        # The next save works, whatever the kill left behind.
        save_adapter(new, path)
        assert distance(loaded_draws(path), draws(new)) < 1e-6
        assert not path.with_name("adapter.previous").exists()


def test_a_save_after_a_kill_between_the_renames_needs_no_help(
    old: PeftModel, new: PeftModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And if that save fails too, the oldest adapter is still there."""
    path = tmp_path / "adapter"
    save_adapter(old, path)
    before = contents(path)
    os.rename(path, tmp_path / "adapter.previous")
    write = full_disk(safetensors.torch.save_file)
    monkeypatch.setattr("peft.peft_model.safe_save_file", write)
    with pytest.raises(OSError, match="No space left"):
        save_adapter(new, path)
    assert contents(path) == before


def test_recover_folder(tmp_path: Path) -> None:
    path, previous = tmp_path / "a", tmp_path / "a.previous"
    recover_folder(path)
    assert os.listdir(tmp_path) == []
    previous.mkdir()
    (previous / "old").touch()
    recover_folder(path)
    assert os.listdir(tmp_path) == ["a"]
    assert os.listdir(path) == ["old"]
    # A folder that is there is never replaced by the one set aside.
    previous.mkdir()
    (previous / "older").touch()
    recover_folder(path)
    assert os.listdir(path) == ["old"]


# --- files and folders ---------------------------------------------------------------------------------------------


def fail_within(context: AbstractContextManager[Path], write: Callable[[Path], Any]) -> None:
    with context as aside:
        write(aside)
        raise RuntimeError("on purpose")


def test_a_file_is_replaced_at_the_end_of_the_block_only(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    write_json(path, {"value": 1})
    with atomic_file(path) as aside:
        aside.write_text("new")
        assert json.loads(path.read_text()) == {"value": 1}
    assert path.read_text() == "new"
    with pytest.raises(RuntimeError, match="on purpose"):
        fail_within(atomic_file(path), lambda aside: aside.write_text("newer"))
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["a.json"]


def test_what_a_killed_writer_left_is_removed_by_the_next_one_but_not_what_another_writes_now(tmp_path: Path) -> None:
    left, now, other = (tmp_path / f".{name}.0123abcd" for name in ("a.json", "b.json", "[a].json"))
    for path in (left, now, other):
        path.write_text("{")
    for path in (left, other):
        os.utime(path, (0, 0))
    for name in ("a.json", "b.json"):
        write_json(tmp_path / name, {})
    assert sorted(os.listdir(tmp_path)) == sorted([other.name, now.name, "a.json", "b.json"])
    write_json(tmp_path / "[a].json", {})
    assert not other.exists()


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"value": 1})
    with pytest.raises(TypeError):
        write_json(path, {"value": torch.zeros(1)})
    assert json.loads(path.read_text()) == {"value": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_folder_is_replaced_at_the_end_of_the_block_only(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with atomic_folder(path) as aside:
        (aside / "one").touch()
        assert not path.exists()
    with atomic_folder(path) as aside:
        (aside / "two").touch()
        assert os.listdir(path) == ["one"]
    assert os.listdir(path) == ["two"]
    with pytest.raises(RuntimeError, match="on purpose"):
        fail_within(atomic_folder(path), lambda aside: (aside / "three").touch())
    assert os.listdir(path) == ["two"]
    assert os.listdir(tmp_path) == ["folder"]


def test_a_full_disk_is_known_behind_another_error() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    other = ValueError("a checkpoint could not be written")
    other.__cause__ = full
    assert disk_is_full(other) and disk_is_full(full)
    assert disk_is_full(Exception("No space left on device (os error 28)")), "as tokenizers say it"
    assert not disk_is_full(OSError(errno.EACCES, "Permission denied"))
    assert not disk_is_full(Exception("Permission denied (os error 13)"))

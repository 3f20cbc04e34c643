"""Kills at chosen changes of files and at random moments: nothing that was there may be lost, everything goes on."""

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from campaign.calls import Called, call
from campaign.decisions import base_with_codes, records_of
from campaign.outcome import Attempt
from campaign.world import World


class Kill:
    """When to kill: at a change of files, or after some seconds; drawn once it is known how many changes there are."""

    def __init__(self, source: random.Random):
        self._source = source

    def drawn(self, whole: Called, seconds: float) -> dict[str, Any]:
        """Options of `call`."""
        if self._source.random() < 0.7:
            return {"kill_at": self._source.randrange(1, whole.changes + 1)}
        return {"kill_after": self._source.uniform(0.05, seconds)}


def kills(world: World, count: int, source: random.Random) -> Iterator[Attempt]:
    """`count` kills over all scenarios, and what each lost."""
    kinds: list[type[_Scenario]] = [_Training, _Overwriting, _Comparison, _Evaluation, _Export, _Decisions]
    scenarios = [kind(world) for kind in kinds]
    for number in range(count):
        scenario = scenarios[number % len(scenarios)]
        folder = world.folder / f"kill-{number}"
        when, lost = scenario.attempt(folder, Kill(source))
        yield Attempt("kill", f"{type(scenario).__name__.strip('_').lower()}, {when} ({number})", _kind(lost), lost)
        shutil.rmtree(folder, ignore_errors=True)


def _kind(lost: str) -> str:
    return "lost" if lost else "clear"


class _Scenario:
    """A command, what must hold after it was killed, and after it was called again."""

    seconds = 2.0

    def __init__(self, world: World):
        self.world = world
        folder = world.folder / f"whole-{type(self).__name__.strip('_').lower()}"
        self.prepare(folder)
        self.whole = call(*self.command(folder), folder=folder)
        if self.whole.status:
            raise RuntimeError(f"the command that is to be killed fails by itself: {self.whole.said}")
        self.expected = self.state(folder)

    def attempt(self, folder: Path, kill: Kill) -> tuple[str, str]:
        """When it was killed, and what was lost."""
        self.prepare(folder)
        options = kill.drawn(self.whole, self.seconds)
        call(*self.command(folder), folder=folder, **options)
        when = ", ".join(f"{name} {value:.4g}" for name, value in options.items())
        return when, self.after_kill(folder) or self.after_again(folder)

    def prepare(self, folder: Path) -> None:
        """What is there before."""

    def command(self, folder: Path) -> list[object]:
        """What is killed."""
        raise NotImplementedError

    def again(self, folder: Path) -> list[object]:
        """What goes on after the kill."""
        return self.command(folder)

    def state(self, folder: Path) -> Any:
        """What an uninterrupted call leaves, without times."""
        raise NotImplementedError

    def after_kill(self, folder: Path) -> str:
        """What the kill lost."""
        return ""

    def after_again(self, folder: Path) -> str:
        """What is not as after an uninterrupted call."""
        done = call(*self.again(folder), folder=folder)
        if done.status:
            return f"going on fails ({done.status}): {done.said[-1500:]}"
        differing = _difference(self.expected, self.state(folder))
        if differing:
            return f"going on gives another result: {differing}"
        beside = [path for path in folder.parent.iterdir() if path.name in _names_beside(folder)]
        beside += folder.parent.glob(f".{folder.name}.????????")
        left = [path.name for path in [*folder.rglob("*"), *beside] if _is_leftover(path) or path in beside]
        return f"left behind: {left}" if left else ""


def _names_beside(folder: Path) -> tuple[str, str]:
    return f".{folder.name}.lock", f"{folder.name}.previous"


def _is_leftover(path: Path) -> bool:
    """A temporary file or folder of a save that was cut off."""
    name = path.name
    return (name.endswith((".partial", ".previous")) and name != "checkpoints.previous") or (
        name.startswith(".") and not name.endswith(".lock") and path.parent.name != ".cache"
    )


def _run_state(folder: Path) -> Any:
    metrics = json.loads((folder / "metrics.json").read_text())
    kept = {name: value for name, value in metrics.items() if "seconds" not in name and "bytes" not in name}
    return {"tensors": load_file(folder / "adapter" / "adapter_model.safetensors"), "metrics": kept}


def _difference(expected: Any, found: Any, where: str = "") -> str:
    if isinstance(expected, torch.Tensor):
        same = expected.shape == found.shape and torch.allclose(expected, found, rtol=1e-4, atol=1e-6)
        return "" if same else f"{where} differs"
    if isinstance(expected, dict):
        if set(expected) != set(found):
            return f"{where}: keys {sorted(set(expected) ^ set(found))}"
        return next(
            (text for key in expected if (text := _difference(expected[key], found[key], f"{where}/{key}"))), ""
        )
    if isinstance(expected, list):
        if len(expected) != len(found):
            return f"{where}: {len(found)} entries for {len(expected)}"
        pairs = enumerate(zip(expected, found, strict=True))
        return next(filter(None, (_difference(*pair, f"{where}[{n}]") for n, pair in pairs)), "")
    if isinstance(expected, float):
        close = abs(expected - found) <= 1e-4 * max(1.0, abs(expected)) or expected != expected
        return "" if close else f"{where}: {found} for {expected}"
    return "" if expected == found else f"{where}: {found!r} for {expected!r}"


class _Training(_Scenario):
    """A first training; `--resume` goes on."""

    def command(self, folder: Path) -> list[object]:
        return ["train", "--config", self.world.folder / "config.yaml", "--output_dir", folder]

    def again(self, folder: Path) -> list[object]:
        # Where the kill came after the last change the run is finished, and stays.
        return [*self.command(folder), "--resume", "true"]

    def state(self, folder: Path) -> Any:
        return _run_state(folder)


class _Overwriting(_Scenario):
    """A training over a finished run: the folder holds the old one or the new one, whole."""

    def __init__(self, world: World):
        self._old = world.folder / "old-run"
        config = world.config
        config["train"]["learning_rate"] = 0.05
        config["temperature_scaling"] = False
        done = call("train", "--config", world.write("old.yaml", config), "--output_dir", self._old)
        if done.status:
            raise RuntimeError(done.said)
        self._old_state = _run_state(self._old)
        super().__init__(world)

    def prepare(self, folder: Path) -> None:
        shutil.copytree(self._old, folder)

    def command(self, folder: Path) -> list[object]:
        config = self.world.folder / "config.yaml"
        return ["train", "--config", config, "--output_dir", folder, "--overwrite", "true"]

    def state(self, folder: Path) -> Any:
        return _run_state(folder)

    def after_kill(self, folder: Path) -> str:
        out = folder.with_name(f"{folder.name}-out.jsonl")
        done = call("predict", folder, "--input", self.world.folder / "new.jsonl", "--output", out)
        out.unlink(missing_ok=True)
        if done.status:
            return f"the run no longer predicts: {done.said[-1500:]}"
        state = _run_state(folder)
        found = [_difference(expected, state) for expected in (self._old_state, self.expected)]
        return "" if "" in found else f"neither the old run ({found[0]}) nor the new one ({found[1]})"


class _Comparison(_Scenario):
    """A comparison; the same call goes on."""

    seconds = 6.0

    def command(self, folder: Path) -> list[object]:
        return ["compare", "--config", self.world.folder / "comparison.yaml", "--output_dir", folder]

    def state(self, folder: Path) -> Any:
        lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
        cells = [line for line in lines if line.get("kind") == "cell"]
        return {
            f"{cell['method']} {cell['seed']} {cell['stage']}": {
                "probabilities": [part["probabilities"] for part in _predictions(cell)]
            }
            for cell in cells
        }


def _predictions(content: Any) -> list[dict[str, Any]]:
    """Every mapping with probabilities inside of a record, in its order."""
    if isinstance(content, dict):
        own = [content] if "probabilities" in content else []
        return own + [found for value in content.values() for found in _predictions(value)]
    if isinstance(content, list):
        return [found for value in content for found in _predictions(value)]
    return []


class _Evaluation(_Scenario):
    """An evaluation of a finished run: its files are the old ones or the new ones, each whole."""

    seconds = 0.6

    def __init__(self, world: World):
        self._old = world.folder / "run"
        super().__init__(world)

    def prepare(self, folder: Path) -> None:
        shutil.copytree(self._old, folder)

    def command(self, folder: Path) -> list[object]:
        return ["evaluate", folder]

    def state(self, folder: Path) -> Any:
        rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
        return _run_state(folder) | {"rows": rows}

    def after_kill(self, folder: Path) -> str:
        try:
            _run_state(folder)
            rows = folder / "predictions.jsonl"
            if rows.exists():
                [json.loads(line) for line in rows.read_text().splitlines()]
        except (OSError, ValueError) as error:
            return f"a file is broken: {error}"
        return ""


class _Replacing(_Scenario):
    """A folder that is put into the place of an older one as a whole: the old one or the new one is there, whole."""

    seconds = 1.0

    def older(self, folder: Path) -> list[object]:
        """What makes the older one."""
        raise NotImplementedError

    def __init__(self, world: World):
        self.world, name = world, type(self).__name__.strip("_").lower()
        self._old = world.folder / f"old-{name}"
        done = call(*self.older(self._old))
        if done.status:
            raise RuntimeError(done.said)
        self._old_state = self.state(self._old)
        super().__init__(world)

    def prepare(self, folder: Path) -> None:
        shutil.copytree(self._old, folder)

    def state(self, folder: Path) -> Any:
        return {str(path.relative_to(folder)): load_file(path) for path in sorted(folder.rglob("*.safetensors"))}

    def after_kill(self, folder: Path) -> str:
        # Between two renames the old one stands aside, and the next writer brings it back.
        there = folder if folder.exists() else folder.with_name(f"{folder.name}.previous")
        state = self.state(there)
        found = [_difference(expected, state) for expected in (self._old_state, self.expected)]
        return "" if "" in found else f"neither the old folder ({found[0]}) nor the new one ({found[1]})"


class _Export(_Replacing):
    """An export over an older one."""

    def older(self, folder: Path) -> list[object]:
        return [
            "export",
            self.world.folder / "run",
            "--format",
            "samples",
            "--num_samples",
            "2",
            "--output_dir",
            folder,
        ]

    def command(self, folder: Path) -> list[object]:
        return ["export", self.world.folder / "run", "--format", "mean", "--output_dir", folder]


class _Decisions(_Replacing):
    """A decision model over an older one of fewer records."""

    def older(self, folder: Path) -> list[object]:
        return self._train(folder, 30)

    def command(self, folder: Path) -> list[object]:
        return [*self._train(folder, 40), "--overwrite"]

    def _train(self, folder: Path, count: int) -> list[object]:
        base = self.world.folder / "codes"
        if not base.exists():
            base_with_codes(base)
        records = records_of(self.world.folder / f"records-{count}.jsonl", count)
        model = ["--model.name", base, "--model.device", "cpu"]
        return ["train", *model, "--task.name", records, "--output_dir", folder]

"""Exported adapters, read by vLLM's own loading code, without a GPU and without installing vLLM.

    python studies/export/other_loaders/check_vllm.py exports/mean exports/samples/draw0 --vllm FOLDER

FOLDER is an unpacked source distribution of vLLM. Its modules peft_helper, lora_model, lora_weights and utils in
vllm/lora run as they are; whatever else of vLLM they import is replaced by empty classes, which this code path does not
use. The names of the layers that a served model adapts come from --modules, since no model is built. bayeslora cannot
be imported here. Ends with status 1 if an adapter is refused, or read as anything but its file's A and B at scale 1.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import json
import logging
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file

REAL = tuple(f"vllm.lora.{name}" for name in ("peft_helper", "lora_model", "lora_weights", "utils"))
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Empty(ModuleType):
    """A module that has a class of every name."""

    def __getattr__(self, name: str) -> type:
        """An empty class."""
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class Log(logging.Logger):
    """The logger that vLLM's modules ask for."""

    def info_once(self, *_: object) -> None:
        """Nothing: notes are not of interest here."""


class Finder:
    """Finds the real modules in `folder`, and an empty one for any other of vLLM."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        """As the import system asks."""
        if name in REAL:
            return importlib.util.spec_from_file_location(name, self.folder / f"{name.replace('.', '/')}.py")
        if name.split(".")[0] == "vllm":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """An empty module."""
        return Empty(spec.name)

    def exec_module(self, module: Any) -> None:
        """What the real modules call while they are imported."""
        if module.__name__ == "vllm.logger":
            module.init_logger = Log
        if module.__name__ == "vllm.utils.torch_utils":
            module.PIN_MEMORY = False


def check(folder: Path, modules: set[str], max_lora_rank: int) -> dict[str, Any]:
    """What vLLM makes of one adapter.

    Raises:
        ValueError: It is refused; the message is vLLM's.
    """
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper

    helper = PEFTHelper.from_local_dir(str(folder), None)
    helper.validate_legal(SimpleNamespace(max_lora_rank=max_lora_rank))
    model = LoRAModel.from_local_checkpoint(str(folder), modules, helper, device="cpu", dtype=torch.float32)
    found: dict[str, torch.Tensor] = {}
    for name, layer in model.loras.items():
        found |= {f"{name}.lora_A.weight": layer.lora_a, f"{name}.lora_B.weight": layer.lora_b}
    for name, module in model.modules_to_save.items():
        found |= {f"{name}.weight": module.weight} | ({} if module.bias is None else {f"{name}.bias": module.bias})
    tensors = load_file(folder / "adapter_model.safetensors")
    expected = {name.removeprefix("base_model.model."): tensor.float() for name, tensor in tensors.items()}
    return {
        "layers": len(model.loras),
        "ranks": sorted({layer.rank for layer in model.loras.values()}),
        "scales": sorted({layer.scaling for layer in model.loras.values()}),
        "saved_modules": sorted(model.modules_to_save),
        "tensors_equal": found.keys() == expected.keys()
        and all(torch.equal(found[name].float(), expected[name]) for name in found),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapters", type=Path, nargs="+")
    parser.add_argument("--vllm", type=Path, required=True, help="folder that has PKG-INFO and vllm/lora")
    parser.add_argument("--modules", nargs="+", default=MODULES, help="last names of the layers that vLLM adapts")
    parser.add_argument("--max_lora_rank", type=int, default=16)
    parser.add_argument("--output", type=Path, help="results file; default: print only")
    arguments = parser.parse_args()
    sys.modules["bayeslora"] = None  # type: ignore[assignment]
    sys.meta_path.insert(0, Finder(arguments.vllm.resolve()))
    head = (arguments.vllm / "PKG-INFO").read_text(encoding="utf-8").splitlines()
    version = next(line.removeprefix("Version: ") for line in head if line.startswith("Version: "))
    adapters: dict[str, dict[str, Any]] = {}
    for folder in arguments.adapters:
        try:
            adapters[str(folder)] = check(folder, set(arguments.modules), arguments.max_lora_rank)
        except ValueError as error:
            adapters[str(folder)] = {"refused": str(error)}
    passed = all(found.get("scales") == [1] and found["tensors_equal"] for found in adapters.values())
    command = " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    record = {"command": command, "vllm": version, "adapters": adapters, "passed": passed}
    text = json.dumps(record, indent=1) + "\n"
    print(text, end="")
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text, encoding="utf-8")
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())

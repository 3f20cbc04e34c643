"""Exports of a run, read by llama.cpp: its own converters, and its server where `xllamacpp` is installed.

    python studies/export/other_loaders/check_llama_cpp.py runs/first --llama_cpp FOLDER --llama_cpp_version TEXT

FOLDER is a checkout of llama.cpp, such as `vendor/llama.cpp` in the source distribution of llama-cpp-python. The
converters run in processes that cannot import bayeslora. The run must be of a causal language model whose tokenizer
llama.cpp knows. Ends with status 1 if a check fails; the measured errors are in the results file either way.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import AutoTokenizer

import bayeslora
from bayeslora.deploy.export import RECORD, export_run
from bayeslora.runs import load_run
from studies.cost.timing import environment, save

DRAWS = 2
TEXTS = (
    "Which gas do plants take in?\nA) oxygen\nB) carbon dioxide\nAnswer:",
    "The sun is",
    "def area(radius):\n    return",
)
TOLERANCE = 1e-5
"""Of weights added in float32: the error's norm over the update's."""
SERVER_TOLERANCE = 1e-3
"""Nats, of log-probabilities after all layers in float32 by two programs."""

ALONE = """
import pathlib, runpy, sys
sys.modules["bayeslora"] = None  # an import of it fails
sys.argv = sys.argv[1:]
sys.path[0] = str(pathlib.Path(sys.argv[0]).parent)
runpy.run_path(sys.argv[0], run_name="__main__")
"""

Arrays = dict[str, np.ndarray]


def convert(script: Path, *arguments: str | Path) -> None:
    """Run a converter of llama.cpp in a process that cannot import bayeslora."""
    subprocess.run([sys.executable, "-c", ALONE, str(script), *map(str, arguments)], check=True)


def read(path: Path) -> tuple[Arrays, gguf.GGUFReader]:
    """The tensors of a GGUF file of float32 numbers, in the shapes that torch gives them."""
    reader = gguf.GGUFReader(path)
    return {tensor.name: np.asarray(tensor.data) for tensor in reader.tensors}, reader


def field(reader: gguf.GGUFReader, key: str) -> Any:
    """One entry of the head of a GGUF file."""
    found = reader.get_field(key)
    assert found is not None, key
    return found.contents()


def check_adapter(folder: Path, path: Path, base: Path) -> dict[str, Any]:
    """The GGUF file of an adapter against the exported folder and the base model.

    The rows of B are compared without their order: llama.cpp orders those of query and key by its rotary embedding.
    `check_merged` sees whether that order fits the base model.
    """
    tensors, reader = read(path)
    weights, head = read(base)
    names = gguf.get_tensor_name_map(
        next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == field(reader, "general.architecture")),
        field(head, f"{field(head, 'general.architecture')}.block_count"),
    )
    expected: Arrays = {}
    for key, value in load_file(folder / "adapter_model.safetensors").items():
        module, part, _ = key.removeprefix("base_model.model.").rsplit(".", 2)
        expected[f"{names.get_name(module)}.weight.{part.lower()}"] = value
    ranks = {value.shape[1] for name, value in tensors.items() if name.endswith(".lora_b")}
    alpha = field(reader, "adapter.lora.alpha")
    same_names = tensors.keys() == expected.keys()
    return {
        "tensors": len(tensors),
        "ranks": sorted(ranks),
        "scales": sorted({alpha / rank for rank in ranks}),
        "names_as_expected": same_names and all(name.rsplit(".", 1)[0] in weights for name in tensors),
        "a_equal": same_names and all(np.array_equal(tensors[n], expected[n]) for n in tensors if n.endswith("_a")),
        "b_equal": same_names
        and all(np.array_equal(_rows(tensors[n]), _rows(expected[n])) for n in tensors if n.endswith("_b")),
    }


def _rows(matrix: np.ndarray) -> np.ndarray:
    return matrix[np.lexsort(matrix.T)]


def check_merged(base: Path, adapter: Path, merged: Path) -> dict[str, Any]:
    """Base plus B A of the adapter's file against the merged model's, all as llama.cpp would load them.

    The error is the norm of the difference over the norm of B A, the largest of all layers.
    """
    (weights, _), (low_rank, _), (whole, _) = read(base), read(adapter), read(merged)
    adapted = {name.removesuffix(".lora_a") for name in low_rank if name.endswith(".lora_a")}
    errors = {}
    for name in adapted:
        update = low_rank[f"{name}.lora_b"] @ low_rank[f"{name}.lora_a"]
        errors[name] = float(np.linalg.norm(whole[name] - weights[name] - update) / np.linalg.norm(update))
    others = weights.keys() - adapted
    return {
        "layers": len(adapted),
        "largest_error": max(errors.values()),
        "others_equal": weights.keys() == whole.keys() and all(np.array_equal(weights[n], whole[n]) for n in others),
    }


def own_log_probabilities(run: Path, ids: Sequence[Sequence[int]]) -> np.ndarray:
    """Those of the next token `[2 + draws, texts, vocabulary]`: of the base model, the mean, and bayeslora's draws."""
    loaded = load_run(run)
    model = loaded.model.float().eval()

    def logits(batch: torch.Tensor) -> torch.Tensor:
        return model(input_ids=batch).logits[:, -1]

    rows = []
    with torch.no_grad():
        for batch in (torch.tensor([text]) for text in ids):
            with model.disable_adapter():
                base = logits(batch)
            mean = logits(batch)
            with bayeslora.sampling(model, DRAWS, loaded.config.seed):
                rows.append(torch.cat([base, mean, logits(batch)]).log_softmax(-1))
    return torch.stack(rows, 1).numpy()


def served_log_probabilities(
    base: Path, adapters: Sequence[Path], ids: Sequence[Sequence[int]], exact: bool
) -> np.ndarray:
    """Those of llama.cpp's server `[1 + adapters, texts, vocabulary]`: of no adapter, then of each by its request.

    Exact: float32 throughout; else the server's own choice of number types, of which float16 is one.
    """
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(base)
    parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(path), 1.0) for path in adapters]
    parameters.lora_init_without_apply = True
    parameters.n_ctx, parameters.n_parallel, parameters.warmup, parameters.verbosity = 512, 1, False, 0
    parameters.cpuparams.n_threads = 1
    if exact:
        parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(parameters)
    vocabulary = read(base)[0]["token_embd.weight"].shape[0]
    found = np.full((1 + len(adapters), len(ids), vocabulary), np.nan, dtype=np.float32)
    for choice, row in np.ndindex(*found.shape[:2]):
        body = {
            "prompt": list(ids[row]),
            "n_predict": 1,
            "n_probs": vocabulary,
            "cache_prompt": False,
            "lora": [{"id": number, "scale": float(number == choice - 1)} for number in range(len(adapters))],
        }
        answer = _post(f"{server.listening_address}/completion", body)
        for token in answer["completion_probabilities"][0]["top_logprobs"]:
            found[choice, row, token["id"]] = token["logprob"]
    return found


def _post(url: str, body: Mapping[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def check_server(run: Path, base: Path, adapters: Mapping[str, Path], tokenizer: Any) -> dict[str, Any]:
    """Log-probabilities of llama.cpp's server against those of bayeslora, in nats: the largest error of all tokens.

    That of the base model without an adapter says how much of it is the server's arithmetic.
    """
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    own, names = own_log_probabilities(run, ids), ["base", *adapters]
    record: dict[str, Any] = {"xllamacpp": version("xllamacpp"), "texts": len(ids)}
    for setting in ("exact", "default"):
        served = served_log_probabilities(base, list(adapters.values()), ids, setting == "exact")
        errors = np.abs(own - served).max(axis=(1, 2))
        record[f"largest_error_{setting}"] = dict(zip(names, errors.tolist(), strict=True))
    pairs = [np.abs(one - other).max() for one, other in itertools.combinations(own, 2)]
    return {**record, "difference_between_models": float(min(pairs))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--llama_cpp", type=Path, required=True, help="folder with convert_lora_to_gguf.py")
    parser.add_argument("--llama_cpp_version", required=True, help="what it is, for the results file")
    parser.add_argument("--output", type=Path, default=Path("studies/export/other_loaders/llama_cpp.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        record = measure(arguments.run, arguments.llama_cpp, Path(folder))
    record = {**environment(torch.device("cpu")), "llama_cpp": arguments.llama_cpp_version, **record}
    save(arguments.output, {**record, "passed": passed(record)})
    return 0 if passed(record) else 1


def measure(run: Path, llama_cpp: Path, work: Path) -> dict[str, Any]:
    """Export, convert and compare."""
    export_run(run, work / "mean")
    export_run(run, work / "samples", format="samples", num_samples=DRAWS)
    export_run(run, work / "merged", format="merged", draw=0)
    facts = json.loads((work / "mean" / RECORD).read_text(encoding="utf-8"))
    source = Path(facts["base_model"])
    base, merged = work / "base.gguf", work / "merged.gguf"
    for folder, path in ((source, base), (work / "merged", merged)):
        convert(llama_cpp / "convert_hf_to_gguf.py", folder, "--outtype", "f32", "--outfile", path)
    folders = {"mean": work / "mean"} | {f"draw{s}": work / "samples" / f"draw{s}" for s in range(DRAWS)}
    adapters = {name: work / f"{name}.gguf" for name in folders}
    for name, path in adapters.items():
        convert(llama_cpp / "convert_lora_to_gguf.py", folders[name], "--base", source, "--outfile", path)
    record: dict[str, Any] = {
        "method": facts["method"],
        "adapters": {name: check_adapter(folders[name], path, base) for name, path in adapters.items()},
        "merged": check_merged(base, adapters["draw0"], merged),
    }
    if importlib.util.find_spec("xllamacpp"):
        record["server"] = check_server(run, base, adapters, AutoTokenizer.from_pretrained(source))
    return record


def passed(record: Mapping[str, Any]) -> bool:
    """Whether everything is as the documentation says."""
    good = [
        adapter["scales"] == [1] and adapter["names_as_expected"] and adapter["a_equal"] and adapter["b_equal"]
        for adapter in record["adapters"].values()
    ]
    good += [record["merged"]["others_equal"], record["merged"]["largest_error"] < TOLERANCE]
    if "server" in record:
        # NaN, a token that the server left out, is no pass.
        good += [error < SERVER_TOLERANCE for error in record["server"]["largest_error_exact"].values()]
        good += [record["server"]["difference_between_models"] > 10 * SERVER_TOLERANCE]
    return all(good)


if __name__ == "__main__":
    raise SystemExit(main())

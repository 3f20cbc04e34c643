"""Two processes of the command line on one machine: the same adapter, the same predictions, one writer."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_cli import items, tiny_base, write_items  # noqa: F401

from bayeslora.system.processes import (
    all_reduce_max,
    full_tensor,
    gather_items,
    init_processes,
    is_launched,
    shard_items,
    world_size,
)
from bayeslora_cli.commands import command_classes
from bayeslora_cli.main import main
from conftest import distance
from other_processes import run_copy, run_python

ROOT = Path(__file__).parents[2]
LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")

COMMANDS = """
import json, os, sys
from pathlib import Path
from bayeslora_cli.main import main
from bayeslora.runs import evaluate, load_run, task_items

folder, second = Path(sys.argv[1]), os.environ["RANK"] == "1"
if second:
    # All that the library writes takes its place by one of these.
    def refuse(*paths):
        raise AssertionError(f"the second process writes {paths}")
    os.replace = os.rename = refuse
main(["train", "--config", f"{folder}/config.yaml", "--output_dir", f"{folder}/two", "--train.batch_size", "4"])
main(["predict", f"{folder}/one", "--input", f"{folder}/data/test.jsonl", "--output", f"{folder}/two.jsonl"])
metrics = evaluate(f"{folder}/one", output_dir=f"{folder}/evaluated")
# Fewer batches than processes.
run = load_run(f"{folder}/one")
few = run.predict(task_items(run.config.task).test[:3]).predictive.probabilities.tolist()
Path(f"{folder}/rank{os.environ['RANK']}.json").write_text(json.dumps([metrics, few]))

# accelerate has FSDP2 for GPUs alone; told that two CPUs are GPUs which talk by gloo, it wraps and trains the same way.
from accelerate import PartialState
from accelerate.utils import DistributedType

os.environ |= {
    "ACCELERATE_TORCH_DEVICE": "cpu",
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}
PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)

from bayeslora.system.processes import is_dtensor
from bayeslora.runs.config_files import parse_config
from bayeslora.runs import train

config = parse_config(f"{folder}/config.yaml")
config.train.batch_size = 4
trained = train(config, f"{folder}/sharded")
layers = [p for name, p in trained.model.named_parameters() if ".layers." in name]
assert layers and all(map(is_dtensor, layers)), "nothing was sharded"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:  # noqa: F811
    """Runs of one process with batches of 8 and of two with 4 each; 3 batches of dev items to predict, 5 of test."""
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "data").mkdir()
    for name, count, offset in (("train", 24, 0), ("dev", 11, 100), ("test", 19, 200)):
        rows = items(count, offset)
        for number, row in enumerate(rows):
            # Lengths that order the items otherwise than the file does, and other numbers of choices.
            row["question"] = "Tell me. " * (number * 7 % 5) + row["question"]
            row["choices"] = row["choices"][: 2 + number % 2]
            row["label"] = number % 2
        write_items(folder / "data" / f"{name}.jsonl", rows)
    content = {
        "model": {"name": str(tiny_base), "device": "cpu"},
        "task": {"name": str(folder / "data")},
        "method": {"class_path": "BayesianLora", "init_args": {"r": 2, "last_layers": 2, "prior_std": 0.3}},
        "train": {"max_steps": 3, "batch_size": 8, "logging_steps": 1, "learning_rate": 0.02},
        "num_samples": 3,
        "batch_size": 4,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    main(["train", "--config", str(folder / "config.yaml"), "--output_dir", str(folder / "one")])
    test = str(folder / "data" / "test.jsonl")
    main(["predict", str(folder / "one"), "--input", test, "--output", str(folder / "one.jsonl")])
    done = run_python(COMMANDS, folder, str(folder), launcher=LAUNCHER)
    assert done.returncode == 0, done.stderr[-6000:]
    (folder / "printed").write_text(done.stdout)
    return folder


def test_eight_items_a_step_are_four_in_each_of_two_processes(folder: Path) -> None:
    one, two = (load_file(folder / name / "adapter" / "adapter_model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    # A wrong weight of the KL or another draw would move them by the size of a step of Adam, about the learning rate.
    assert max(distance(one[name], two[name]) for name in one) < 1e-4
    histories = [json.loads((folder / name / "metrics.json").read_text())["history"] for name in ("one", "two")]
    for first, second in zip(*histories, strict=True):
        for key in ("nll", "kl", "kl_weight", "loss"):
            assert second[key] == pytest.approx(first[key], rel=1e-4), key


def test_shared_predictions_are_those_of_one_process(folder: Path) -> None:
    one = (folder / "one.jsonl").read_text()
    assert [json.loads(line)["id"] for line in one.splitlines()] == [f"item-{200 + n}" for n in range(19)]
    assert (folder / "two.jsonl").read_text() == one
    evaluated = (folder / "evaluated" / "predictions.jsonl").read_text()
    assert [json.loads(line)["probabilities"] for line in evaluated.splitlines()] == [
        json.loads(line)["probabilities"] for line in one.splitlines()
    ]


def test_all_processes_know_the_same_metrics_and_the_main_one_writes_and_speaks(folder: Path) -> None:
    first, second = (json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    metrics, few = first
    assert metrics["num_examples"] == 19
    assert json.loads((folder / "evaluated" / "metrics.json").read_text()) == metrics
    rows = [json.loads(line)["probabilities"] for line in (folder / "one.jsonl").open()]
    for found, expected in zip(few, rows[:3], strict=True):
        assert found[: len(expected)] == pytest.approx(expected, abs=1e-5)
    printed = (folder / "printed").read_text()
    assert printed.count("adapter  ") == 1 and printed.count("19 predictions: ") == 1


def test_a_base_model_sharded_by_fsdp2_trains_saves_and_predicts_as_in_one_process(folder: Path) -> None:
    one, sharded = (load_file(folder / name / "adapter" / "adapter_model.safetensors") for name in ("one", "sharded"))
    assert {name: value.shape for name, value in sharded.items()} == {name: value.shape for name, value in one.items()}
    assert max(distance(one[name], sharded[name]) for name in one) < 1e-4
    whole_run, metrics = (json.loads((folder / name / "metrics.json").read_text()) for name in ("one", "sharded"))
    assert metrics["nll"] == pytest.approx(whole_run["nll"], rel=1e-4)
    assert metrics["trainable_parameters"] == whole_run["trainable_parameters"]
    checkpoint = load_file(folder / "sharded" / "checkpoints" / "checkpoint-3" / "adapter_model.safetensors")
    assert max(distance(checkpoint[name], sharded[name]) for name in sharded) == 0
    # What was gathered is an ordinary adapter.
    test = str(folder / "data" / "test.jsonl")
    main(["predict", str(folder / "sharded"), "--input", test, "--output", str(folder / "sharded.jsonl")])
    rows = [[json.loads(line) for line in (folder / f"{name}.jsonl").open()] for name in ("one", "sharded")]
    for first, second in zip(*rows, strict=True):
        assert second["probabilities"] == pytest.approx(first["probabilities"], abs=1e-4)


UPPER_LAYERS = """
import sys
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from peft import get_peft_model
import bayeslora
from bayeslora.training.elbo import kl_divergence
from conftest import seeded, tiny_llama

distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
with seeded(0):
    model = get_peft_model(tiny_llama(), bayeslora.BayesianLoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
expected = kl_divergence(model.train()).total.item()
for layer in model.base_model.model.model.layers[1:]:
    fully_shard(layer, mesh=init_device_mesh("cpu", (1,)))
model(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False).logits.square().mean().backward()
kl = kl_divergence(model).total
kl.backward()
assert abs(kl.item() - expected) < 1e-4 * expected, (kl, expected)
distributed.destroy_process_group()
"""


def test_plain_and_sharded_factors_of_one_shape_are_stacked_apart(tmp_path: Path) -> None:
    run = run_copy(UPPER_LAYERS, tmp_path, str(tmp_path / "store"))
    assert run.returncode == 0, run.stderr[-2000:]


def test_commands_for_one_process_refuse_several(monkeypatch, capsys) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not is_launched() and world_size() == 1
    monkeypatch.setenv("RANK", "0")
    assert is_launched()
    with pytest.raises(SystemExit):
        main(["report", "nowhere"])
    assert "runs in one process" in capsys.readouterr().err
    assert {command.name for command in command_classes() if command.distributed} == {"train", "evaluate", "predict"}
    with pytest.raises(ValueError, match="cannot share the device 'cuda:1'"):
        init_processes("cuda:1")


def test_a_process_of_its_own_has_all_the_work() -> None:
    assert not is_launched() and init_processes("auto") == "auto"
    assert shard_items([1, 2, 3]) == gather_items([1, 2, 3]) == [1, 2, 3]
    assert all_reduce_max(2.5) == 2.5 and all_reduce_max(None) is None
    value = torch.ones(2)
    assert full_tensor(value) is value


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_the_configs_that_are_shipped(path: Path) -> None:
    from accelerate.commands.config.config_args import ClusterConfig

    config = ClusterConfig.from_yaml_file(str(path))
    assert config.num_processes == 2 and config.distributed_type.value in ("MULTI_GPU", "FSDP", "DEEPSPEED")

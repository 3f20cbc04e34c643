"""RAC-LoRA: the sketch, convergence, and chains of blocks that survive kills and moves."""

import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from test_cli import tiny_encoder  # noqa: F401
from test_contract import EVERY, SHARED, TEST, World, world  # noqa: F401
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from bayeslora.experiments.sequences.chain import load_chain, run_chain
from bayeslora.experiments.sequences.config import ChainConfig
from bayeslora.experiments.sequences.sketch import draw_sketch
from bayeslora.methods import BayesianLora, Lora, Method
from bayeslora.methods.replora import RepLora
from bayeslora.prediction.predictive import predict
from bayeslora.runs import load_run
from bayeslora.runs.config import RunConfig
from bayeslora_cli.main import main
from conftest import distance, tiny_llama

IN, OUT, RANK = 5, 6, 2


# --- the sketch ------------------------------------------------------------------------------------------------------


class OneLayer(nn.Module):
    def __init__(self, weight: Tensor):
        super().__init__()
        self.linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.linear.weight.data.copy_(weight)

    def forward(self, value: Tensor) -> Tensor:
        return self.linear(value)


def adapted(weight: Tensor, side: Any, number: int, seed: int = 0) -> PeftModel:
    model: Any = get_peft_model(OneLayer(weight), LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["linear"]))  # type: ignore[arg-type]
    draw_sketch(model, side, seed, number)
    return model


def pair(model: PeftModel) -> tuple[nn.Parameter, nn.Parameter]:
    layer: Any = model.get_submodule("base_model.model.linear")
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight


@pytest.mark.parametrize("side", ["A", "B"])
def test_expected_projector_is_the_rank_over_the_width(side: Any) -> None:
    """E[B (B^T B)^+ B^T] = (r / out) I, and of A^T (A A^T)^+ A = (r / in) I."""
    model, draws = adapted(torch.zeros(OUT, IN), side, 0), 400
    found = []
    for number in range(draws):
        draw_sketch(model, side, 1, number)
        a, b = pair(model)
        sketch, other = (a.T, b) if side == "A" else (b, a)
        assert not sketch.requires_grad and other.requires_grad and not other.any()
        found.append((sketch @ torch.linalg.pinv(sketch.T @ sketch) @ sketch.T).detach())
    projectors = torch.stack(found)
    size = projectors.shape[-1]
    error = projectors.mean(0) - RANK / size * torch.eye(size)
    assert (error.abs() < 4 * projectors.std(0) / draws**0.5).all()
    assert torch.allclose(projectors[0] @ projectors[0], projectors[0], atol=1e-5)
    assert distance(projectors[0], projectors[1]) > 0.1


def trained_block(weight: Tensor, target: Tensor, number: int) -> Tensor:
    """W after a block on |W - T|^2 / 2, trained in A alone, merged."""
    model = adapted(weight, "B", number)
    # A quadratic: the optimizer reaches the optimum of the block.
    optimizer = torch.optim.LBFGS([p for p in model.parameters() if p.requires_grad], line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = 0.5 * (model(torch.eye(IN)).T - target).square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    merged: Any = model.merge_and_unload()
    return merged.linear.weight.detach().clone()


def test_a_chain_reaches_the_optimum_where_a_fixed_sketch_stalls() -> None:
    source = torch.Generator().manual_seed(3)
    start, target = torch.randn(2, OUT, IN, generator=source)
    fixed = redrawn = start
    for block in range(25):
        redrawn = trained_block(redrawn, target, block)
    # Each block leaves 1 - r / out of the squared distance on average: (2 / 3)^25 is 4e-5.
    assert (redrawn - target).square().sum() < 1e-3 * (start - target).square().sum()
    for _ in range(3):
        fixed = trained_block(fixed, target, 0)
    # The fixed sketch ends where it cannot reach: (I - P)(W_0 - T), which is all but r of the dimensions.
    _, b = pair(adapted(start, "B", 0))
    b = b.detach()
    unreachable = (torch.eye(OUT) - b @ torch.linalg.pinv(b)) @ (start - target)
    assert distance(fixed - target, unreachable) < 1e-3
    assert unreachable.square().sum() > 0.3 * (start - target).square().sum()


def test_only_matrices_can_be_sketched() -> None:
    model = RepLora(**SHARED).adapt(tiny_llama(), "causal_lm")
    with pytest.raises(ValueError, match="A and B are parameters"):
        draw_sketch(model, "B", 0)


# --- chains ----------------------------------------------------------------------------------------------------------


def chain_config(world: World, method: Method, **options: Any) -> ChainConfig:  # noqa: F811
    run = world.config(method, max_steps=2 * EVERY)
    return ChainConfig(**{each.name: getattr(run, each.name) for each in fields(RunConfig)}, **options)


def run(config: ChainConfig, folder: Path) -> list[dict[str, Any]]:
    return run_chain(config, folder)


@pytest.fixture(scope="module", params=["lora", "bayesian_lora"])
def method(request: pytest.FixtureRequest) -> Method:
    return Lora(**SHARED) if request.param == "lora" else BayesianLora(**SHARED, prior_std=0.1, inducing_std=0.3)


@pytest.fixture(scope="module")
def chain(method: Method, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("chain")
    run(chain_config(world, method, blocks=2), folder)
    return folder


def tensors(folder: Path, part: str) -> dict[str, Tensor]:
    found = load_file(folder / "adapter" / "adapter_model.safetensors")
    return {key: value for key, value in found.items() if part in key and key.endswith(("weight", "mean"))}


def mean_probabilities(model: nn.Module, folder: Path) -> Tensor:
    batch = load_run(folder / "block0").scoring(TEST)
    return predict(model, batch, 0).probabilities


def test_blocks_have_sketches_of_their_own_that_training_leaves(chain: Path, method: Method, world: World) -> None:  # noqa: F811
    for block in range(2):
        fresh = method.adapt(world.base_model(), "causal_lm")
        draw_sketch(fresh, "B", 0, block)
        drawn = {key.replace(".default", ""): value for key, value in fresh.state_dict().items()}
        found = tensors(chain / f"block{block}", "lora_B")
        assert len(found) == 4 and all(torch.equal(value, drawn[key]) for key, value in found.items())
        trained = tensors(chain / f"block{block}", "lora_A")
        assert len(trained) == 4 and all(value.abs().max() > 1e-3 for value in trained.values())
    first, second = (tensors(chain / f"block{block}", "lora_B") for block in range(2))
    assert all(distance(first[key], second[key]) > 0.1 for key in first)


def test_the_merged_model_is_the_base_with_all_blocks(chain: Path, world: World) -> None:  # noqa: F811
    expected = mean_probabilities(load_run(chain / "block1").model, chain)
    merged = AutoModelForCausalLM.from_pretrained(chain / "merged").eval()
    assert distance(mean_probabilities(merged, chain), expected) < 1e-5
    assert distance(mean_probabilities(load_chain(world.base_model(), chain), chain), expected) < 1e-5
    assert distance(mean_probabilities(world.base_model(), chain), expected) > 1e-2
    first = mean_probabilities(load_run(chain / "block0").model, chain)
    assert distance(mean_probabilities(load_chain(world.base_model(), chain, 1), chain), first) < 1e-5
    assert distance(first, expected) > 1e-3
    # As a list of ordinary adapters, all active at once.
    for block in range(2):
        if not (chain / f"plain{block}").is_dir():
            main(["export", str(chain / f"block{block}"), "--output_dir", str(chain / f"plain{block}")])
    together = PeftModel.from_pretrained(world.base_model(), str(chain / "plain0"), adapter_name="block0")
    together.load_adapter(str(chain / "plain1"), adapter_name="block1")
    together.base_model.set_adapter(["block0", "block1"])
    assert distance(mean_probabilities(together.eval(), chain), expected) < 1e-5


def test_the_merged_model_knows_its_classes(tiny_encoder: Path, tmp_path: Path) -> None:  # noqa: F811
    rows = [{"question": f"Is it iron ({n})?", "choices": ["no", "yes"], "label": n % 2} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    content = {
        "model": {"name": str(tiny_encoder), "device": "cpu"},
        "task": {"name": str(tmp_path / "rows.jsonl"), "scoring": "classification"},
        "method": {"class_path": "Lora", "init_args": {"r": 1}},
        "train": {"max_steps": 1, "arguments": {"disable_tqdm": True}},
        "blocks": 1,
    }
    (tmp_path / "chain.yaml").write_text(yaml.safe_dump(content))
    main(["chain", "--config", str(tmp_path / "chain.yaml"), "--output_dir", str(tmp_path / "out")])
    merged = AutoConfig.from_pretrained(tmp_path / "out" / "merged")
    assert list(merged.id2label.values()) == ["no", "yes"]


def test_records_are_the_scores_after_each_block(chain: Path, method: Method) -> None:
    records = json.loads((chain / "chain.json").read_text())["blocks"]
    assert [record["folder"] for record in records] == ["block0", "block1"]
    for record in records:
        loaded = load_run(chain / record["folder"])
        assert loaded.metrics["split"] == "test" and loaded.metrics["nll"] == record["test"]["nll"]
        assert record["test"]["nll"] == pytest.approx(loaded.predict(TEST).metrics()["nll"], abs=1e-5)
        assert record["dev"]["num_examples"] == 12 and record["test"]["num_examples"] == len(TEST)
        assert ("test_mean" in record) == isinstance(method, BayesianLora)
    table = (chain / "chain.md").read_text()
    assert f"| {records[1]['test']['ece']:.3f} |" in table and len(table.splitlines()) == 4


def test_the_last_block_keeps_its_posterior(chain: Path, method: Method) -> None:
    loaded = load_run(chain / "block1")
    together = loaded.predict(TEST, 5).predictive.samples
    if not isinstance(method, BayesianLora):
        assert loaded.predict(TEST, 5).predictive.spread.max() == 0
        return
    assert together.exp().std(0).max() > 1e-3
    batch = loaded.scoring(TEST)
    one_by_one = predict(loaded.model, batch, 5, loaded.config.seed, chunk_size=1).samples.exp()
    assert distance(predict(loaded.model, batch, 5, loaded.config.seed, chunk_size=5).samples.exp(), one_by_one) < 1e-5


def test_a_killed_chain_ends_as_if_it_had_not_been(chain: Path, method: Method, world: World, tmp_path: Path) -> None:  # noqa: F811
    """Between the blocks, and inside the second one; then a move to another place."""
    state = json.loads((chain / "chain.json").read_text())
    shutil.copytree(chain / "block0", tmp_path / "out" / "block0")
    inside = Path("block1") / "checkpoints" / f"checkpoint-{EVERY}"
    shutil.copytree(chain / inside, tmp_path / "out" / inside)
    (tmp_path / "out" / "chain.json").write_text(json.dumps({**state, "blocks": state["blocks"][:1]}))
    # Had the first block been trained again, it would now be another one.
    (tmp_path / "out" / "block0" / "checkpoints").rename(tmp_path / "gone")
    run(chain_config(world, method, blocks=2), tmp_path / "out")
    assert not (tmp_path / "out" / "block0" / "checkpoints").exists()
    found, expected = (
        load_file(folder / "block1/adapter/adapter_model.safetensors") for folder in (tmp_path / "out", chain)
    )
    assert max(distance(found[key], expected[key]) for key in expected) < 1e-6
    history = json.loads((tmp_path / "out" / "block1" / "metrics.json").read_text())["history"]
    assert [entry["step"] for entry in history] == list(range(1, 2 * EVERY + 1))
    (tmp_path / "out").rename(tmp_path / "moved")
    main(["evaluate", str(tmp_path / "moved" / "block1")])
    moved = json.loads((tmp_path / "moved" / "block1" / "metrics.json").read_text())
    assert moved["nll"] == pytest.approx(state["blocks"][1]["test"]["nll"], abs=1e-5)


def test_a_chain_grows_but_does_not_change(chain: Path, method: Method, world: World, tmp_path: Path) -> None:  # noqa: F811
    shutil.copytree(chain, tmp_path / "out")
    with pytest.raises(ValueError, match=r"another chain: .*sketch is \"B\" there and \"A\" here"):
        run(chain_config(world, method, blocks=3, sketch="A"), tmp_path / "out")
    # As an earlier version wrote it, before there were such options.
    state = json.loads((tmp_path / "out" / "chain.json").read_text())
    del state["config"]["task"]["chat_template"], state["config"]["train"]["warmup"]
    (tmp_path / "out" / "chain.json").write_text(json.dumps(state))
    records = run(chain_config(world, method, blocks=3), tmp_path / "out")
    assert records[:2] == json.loads((chain / "chain.json").read_text())["blocks"] and len(records) == 3
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "merged").eval()
    third = mean_probabilities(load_run(tmp_path / "out" / "block2").model, chain)
    assert distance(mean_probabilities(merged, chain), third) < 1e-5


def test_without_redraw_the_sketch_stays_and_without_sketch_both_are_trained(world: World, tmp_path: Path) -> None:  # noqa: F811
    config = chain_config(world, Lora(**SHARED), blocks=2, sketch="A", redraw=False)
    config.train.max_steps = 2
    run(config, tmp_path / "fixed")
    first, second = (tensors(tmp_path / "fixed" / f"block{block}", "lora_A") for block in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    config = chain_config(world, Lora(**SHARED), blocks=1, sketch=None)
    config.train.max_steps = 2
    run(config, tmp_path / "both")
    assert all(
        value.any() for part in ("lora_A", "lora_B") for value in tensors(tmp_path / "both" / "block0", part).values()
    )


def test_command_line(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    content = {
        "model": {"name": str(world.base), "device": "cpu"},
        "task": {"name": str(world.data)},
        "method": {"class_path": "Lora", "init_args": SHARED},
        "train": {"max_steps": 1, "arguments": {"disable_tqdm": True}},
        "blocks": 2,
    }
    (tmp_path / "chain.yaml").write_text(yaml.safe_dump(content))
    for _ in range(2):
        main(["chain", "--config", str(tmp_path / "chain.yaml"), "--output_dir", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert f"merged model: {tmp_path / 'out' / 'merged'}" in printed
    assert f"next     bayeslora serve {tmp_path / 'out' / 'block1'}" in printed
    with pytest.raises(ValueError, match="at least 1"):
        ChainConfig(blocks=0)
    with pytest.raises(ValueError, match=r"model\.merge"):
        ChainConfig(method=Lora(init_from="runs/lora"))
    (tmp_path / "out" / "block0").rename(tmp_path / "out" / "elsewhere")
    with pytest.raises(FileNotFoundError, match="no adapter to merge"):
        load_run(tmp_path / "out" / "block1")

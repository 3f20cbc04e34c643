"""Intruder dimensions: planted ones are found, the repair does what its formula says, in models and on disk."""

import json
from pathlib import Path

import numpy
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.intruders import reduce_intruder_dimension
from test_cli import config, data, fails, tiny_base  # noqa: F401
from torch import Tensor

from bayeslora import sampling
from bayeslora.experiments.intruder_dimensions import diagnose, left_singular_vectors, repaired, spectrum
from bayeslora.experiments.intruder_dimensions.layers import layer_spectra, scaled_intruders, short_names
from bayeslora.experiments.intruder_dimensions.table import diagnosis_text, next_step
from bayeslora.runs.run import Run
from bayeslora_cli.main import main
from conftest import bayesian, config_for, distance, logits_of, perturb, seeded, tiny_gpt2, tiny_llama


def random_matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted(rows: int = 60, columns: int = 40, size: float = 60.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A matrix, and a spike of singular value `size` along the even mix of all its left singular vectors."""
    weight = random_matrix(rows, columns)
    left = left_singular_vectors(weight)
    u = left.sum(1) / left.shape[1] ** 0.5
    v = random_matrix(columns, 1, 1)[:, 0]
    v = v / v.norm()
    return weight, left, u, v


def test_a_large_spike_is_one_intruder_and_is_the_first_singular_vector():
    weight, left, u, v = planted()
    found = spectrum(weight + 60 * torch.outer(u, v), left)
    assert found.is_intruder.nonzero().flatten().tolist() == [0]
    assert found.cosines[0] < 0.3
    assert (found.left[:, 0] @ u).abs() > 0.98 and (found.right[:, 0] @ v).abs() > 0.98
    assert found.values[0] == pytest.approx(60, rel=0.1)


def test_a_small_update_has_none():
    weight, left, u, v = planted()
    assert spectrum(weight + 1e-3 * torch.outer(u, v), left).count == 0
    assert spectrum(weight, left).cosines == pytest.approx(numpy.ones(10), abs=1e-9)


def test_a_spike_along_an_old_direction_is_none():
    weight, left, _, v = planted()
    assert spectrum(weight + 60 * torch.outer(left[:, 3], v), left).count == 0


def test_the_cosines_are_those_of_numpy():
    weight, tuned = random_matrix(12, 20), random_matrix(12, 20, 1)
    before, after = (numpy.linalg.svd(part.numpy(), full_matrices=False)[0] for part in (weight, tuned))
    expected = numpy.abs(after.T @ before).max(1)[:5]
    found = spectrum(tuned, left_singular_vectors(weight), top=5, threshold=0.55)
    numpy.testing.assert_allclose(found.cosines, expected, rtol=1e-10)
    assert found.count == (expected < 0.55).sum() and 0 < found.count < 5


def test_repair_by_one_changes_nothing_and_by_zero_takes_the_direction_out():
    weight, left, u, v = planted()
    tuned = weight + 60 * torch.outer(u, v)
    intruders = spectrum(tuned, left).intruders
    assert torch.equal(repaired(tuned, intruders, 1), tuned)
    gone = repaired(tuned, intruders, 0)
    assert (intruders.left.mT @ gone).abs().max() < 1e-10
    assert torch.linalg.matrix_norm(gone, 2) < 20
    half = repaired(tuned, intruders, 0.5)
    assert torch.linalg.matrix_norm(half, 2) == pytest.approx(float(intruders.values[0]) / 2)


@pytest.mark.parametrize(("top", "threshold"), [(0, 0.5), (10, 1.5)])
def test_what_cannot_be_counted_is_refused(top, threshold):
    with pytest.raises(ValueError, match="top must be"):
        spectrum(torch.eye(3), torch.eye(3), top, threshold)


# --- models -----------------------------------------------------------------------------------------------------------


def spiked(model: PeftModel, size: float = 30.0) -> PeftModel:
    """A spike in the adapter of each layer, along the even mix of the base's left singular vectors."""
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                base = layer.get_base_layer().weight
                left = left_singular_vectors(base.mT if layer.fan_in_fan_out else base)
                a, b = (part["default"].weight for part in (layer.lora_A, layer.lora_B))
                b.zero_()
                b[:, 0] = size * left.sum(1) / left.shape[1] ** 0.5
                a.div_(a.norm())
    return model.eval()


def lora(rank: int = 2, base=tiny_llama, targets=("q_proj", "down_proj"), **options) -> PeftModel:
    with seeded(1):
        return get_peft_model(base(), LoraConfig(r=rank, target_modules=list(targets), lora_alpha=2 * rank, **options))


def test_each_adapted_layer_is_found_with_its_spike_and_the_base_is_left_alone():
    model = spiked(lora())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    layers = layer_spectra(model)
    assert len(layers) == 8
    assert {layer.shape for layer in layers} == {(32, 32), (32, 48)}
    assert all(layer.mean.count >= 1 and layer.mean.is_intruder[0] for layer in layers)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    untrained = layer_spectra(lora())
    assert sum(layer.mean.count for layer in untrained) == 0
    assert all(layer.update_norm == 0 for layer in untrained)


def test_the_repair_in_a_model_is_that_of_its_weights_and_is_undone():
    model = spiked(lora())
    layers, before = layer_spectra(model), logits_of(model)
    with scaled_intruders(layers, 1):
        assert torch.equal(logits_of(model), before)
    with scaled_intruders(layers, 0.25):
        found = logits_of(model)
    assert torch.equal(logits_of(model), before)
    assert distance(found, before) > 0.1
    merged = spiked(lora()).merge_and_unload()
    for layer in layers:
        weight = merged.get_submodule(layer.name.removeprefix("base_model.model.")).weight
        weight.data = repaired(weight.data, layer.mean.intruders, 0.25)
    assert distance(logits_of(merged), found) < 1e-4


def test_transposed_layers_are_read_the_right_way_round():
    model = spiked(lora(base=tiny_gpt2, targets=("c_fc",), fan_in_fan_out=True))
    layers = layer_spectra(model)
    assert all(layer.shape == (48, 32) and layer.mean.is_intruder[0] for layer in layers)
    with scaled_intruders(layers, 0):
        found = logits_of(model)
    merged = spiked(lora(base=tiny_gpt2, targets=("c_fc",), fan_in_fan_out=True)).merge_and_unload()
    for layer in layers:
        weight = merged.get_submodule(layer.name.removeprefix("base_model.model.")).weight
        weight.data = repaired(weight.data.mT, layer.mean.intruders, 0).mT
    assert distance(logits_of(merged), found) < 1e-4


def test_it_agrees_with_peft():
    """PEFT's own mitigation writes a repaired adapter; of full rank, so that it cuts nothing off."""
    model = spiked(lora(rank=32, targets=("q_proj",)))
    layers, said = layer_spectra(model), []
    with scaled_intruders(layers, 0.75):
        found = logits_of(model)
    reduce_intruder_dimension(model, mitigation_lambda=0.75, logging_sink=said.append)
    counts = [int(line.rpartition(" ")[2]) for line in said if "Intruders:" in line]
    assert counts == [layer.mean.count for layer in layers]
    assert distance(logits_of(model), found) < 1e-3


def test_draws_are_counted_each_by_itself():
    model = bayesian(posterior="diagonal", posterior_std=3.0, prior_std=2.0)
    layers = layer_spectra(model, num_samples=3, seed=5)
    assert [len(layer.draws) for layer in layers] == [3] * len(layers)
    for number in range(3):
        with seeded(0), sampling(model, 1, 5, first=number):
            alone = layer_spectra_of_merged(model)
        assert [layer.draws[number] for layer in layers] == alone
    assert len({tuple(layer.draws[n] for layer in layers) for n in range(3)}) > 1


def layer_spectra_of_merged(model: PeftModel) -> list[int]:
    """Counts of the weights as PEFT merges them."""
    counts = []
    for layer in layer_spectra(model):
        module = layer.module
        before = module.get_base_layer().weight
        after = before + module.get_delta_weight("default")
        counts.append(spectrum(after, left_singular_vectors(before)).count)
    return counts


def test_an_update_that_is_no_matrix_product_is_refused():
    with pytest.raises(ValueError, match="not fixed matrices A and B"):
        layer_spectra(get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"], use_dora=True)))


def test_short_names():
    names = [f"base_model.model.model.layers.{n}.self_attn.{part}" for n in range(2) for part in ("q_proj", "v_proj")]
    assert short_names(names) == ["0 q_proj", "0 v_proj", "1 q_proj", "1 v_proj"]
    assert short_names(["a.1.x.dense", "a.1.y.dense"]) == ["a.1.x.dense", "a.1.y.dense"]


# --- runs and adapters on disk ----------------------------------------------------------------------------------------


def test_a_run_is_diagnosed_from_the_command_line(config, tmp_path, capsys, data):  # noqa: F811
    run = tmp_path / "run"
    main(["train", "--config", str(config), "--output_dir", str(run), "--train.learning_rate", "0.3"])
    capsys.readouterr()
    main(["diagnose", str(run), "--scales", "[0, 0.5, 1]", "--num_samples", "2"])
    text = capsys.readouterr().out
    record = json.loads((run / "diagnosis" / "diagnosis.json").read_text())
    assert f"{record['intruders']} intruder dimensions in {len(record['layers'])} layers" in text
    assert text.splitlines()[-1] == f"next     {next_step(record)}"
    assert (run / "diagnosis" / "diagnosis.png").read_bytes().startswith(b"\x89PNG")
    assert len(record["intruders_of_draws"]["draws"]) == 2
    (repair,) = record["repair"]
    assert repair["items"] == 4 and [point["lambda"] for point in repair["points"]] == [0, 0.5, 1]
    # As the run was evaluated when it was trained, but for the number of draws.
    main(["evaluate", str(run), "--split", "dev", "--num_samples", "2", "--json"])
    evaluated = json.loads(capsys.readouterr().out)
    assert repair["points"][-1]["nll"] == pytest.approx(evaluated["nll"], abs=1e-5)
    other = diagnose(run, tmp_path / "other", tasks=[str(data)], split="test", examples=1, scales=[1])
    assert other["repair"][0]["items"] == 1 and other["repair"][0]["num_samples"] == 3


def test_a_run_without_any_is_one_line_without_a_picture_or_a_prediction(config, tmp_path, capsys, monkeypatch):  # noqa: F811
    run = tmp_path / "run"
    main(["train", "--config", str(config), "--output_dir", str(run), "--train.learning_rate", "1e-6"])
    monkeypatch.setattr(Run, "predict", None)
    capsys.readouterr()
    call = ["diagnose", str(run), "--threshold", "0.01"]
    main(call)
    (line,) = capsys.readouterr().out.splitlines()
    where = "cosine below 0.01 among the top 10"
    assert line == f"no intruder dimensions in 4 layers, mean and 3 draws ({where}): nothing to repair"
    assert sorted(path.name for path in (run / "diagnosis").iterdir()) == ["diagnosis.json"]
    # The picture of an older diagnosis would contradict it.
    (run / "diagnosis" / "diagnosis.png").write_bytes(b"older")
    main([*call, "--overwrite", "true", "--json"])
    assert json.loads(capsys.readouterr().out)["repair"] == []
    assert not (run / "diagnosis" / "diagnosis.png").exists()


def test_the_next_step_is_the_lambda_that_is_best_on_the_first_task():
    def record(*losses: float) -> dict:
        points = [{"lambda": scale, "nll": loss} for scale, loss in zip((0.0, 0.5, 1.0), losses, strict=True)]
        return {"repair": [{"points": points}, {"points": points[::-1]}]}

    assert "lambda 0.5 has the lowest NLL here; peft." in next_step(record(1, 0.8, 0.9))
    assert next_step(record(1, 0.9, 0.8)).startswith("keep the adapter")
    assert next_step({"repair": []}).startswith("--tasks")


def test_a_plain_peft_adapter_needs_no_run(tmp_path, tiny_base, data):  # noqa: F811
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    spiked(model).save_pretrained(tmp_path / "adapter")
    record = diagnose(tmp_path / "adapter")
    assert record["intruders"] >= 4 and record["repair"] == [] and record["intruders_of_draws"] is None
    assert "draws" not in diagnosis_text(record)
    drawn = record | {"intruders": 0, "layers": [], "intruders_of_draws": {"draws": [3, 4], "mean": 3.5, "std": 0.5}}
    text = diagnosis_text(drawn)
    assert "in the mean; 3.5 ± 0.5 in a draw, over 2 draws" in text and "the mean has nothing to repair" in text
    options = {"tasks": [str(data)], "overwrite": True}
    named = diagnose(tmp_path / "adapter", base_model=str(tiny_base), scoring="letter", **options)
    points = named["repair"][0]["points"]
    assert named["repair"][0]["scoring"] == "letter" and points[0]["nll"] != points[-1]["nll"]
    with pytest.raises(ValueError, match="reads a sequence_classification head"):
        diagnose(tmp_path / "adapter", scoring="classification", **options)


def test_a_posterior_adapter_alone_has_its_draws(tmp_path, tiny_base):  # noqa: F811
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    fields = config_for(r=2, task_type="CAUSAL_LM")
    perturb(get_peft_model(base, fields)).save_pretrained(tmp_path / "adapter")
    assert len(diagnose(tmp_path / "adapter", num_samples=2)["intruders_of_draws"]["draws"]) == 2


def test_what_is_no_adapter_is_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert "neither a run nor a PEFT adapter" in fails(capsys, "diagnose", tmp_path / "empty")
    said = fails(capsys, "diagnose", "user/name")
    assert "check its name" in said and "--output_dir FOLDER" in said


def test_an_adapter_that_changed_its_base_is_refused(tmp_path):
    model = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa"))
    model.save_pretrained(Path(tmp_path) / "adapter")
    with pytest.raises(ValueError, match="changes the base weights"):
        diagnose(tmp_path / "adapter")

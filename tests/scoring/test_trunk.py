"""The trunk cache is exact, skips what it says, and stays out of the way where it does not apply."""

import errno
import logging
import multiprocessing
import os
import signal
from dataclasses import asdict, replace

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from test_cli import data, tiny_base  # noqa: F401

from bayeslora import predict
from bayeslora.experiments.comparison.config import AdapterConfig, CompareConfig, ProtocolConfig, RowConfig
from bayeslora.experiments.comparison.runner import compare
from bayeslora.methods import BayesianLora, Lora
from bayeslora.runs import evaluate, load_run, train
from bayeslora.runs.building import open_trunk_cache
from bayeslora.runs.config import ModelConfig, RunConfig, TaskConfig, TrainConfig
from bayeslora.runs.items import task_items
from bayeslora.scoring import Cloze, Letter
from bayeslora.scoring.trunk_cache import TrunkCache, _keys, frozen_trunk, trunk_digest
from bayeslora.scoring.trunk_store import DiskStore, MemoryStore
from bayeslora.system import files as saving
from bayeslora.tasks import Item
from conftest import bayesian, byte_level_tokenizer, config_for, distance, tiny_gpt2, tiny_llama

ITEMS = [
    Item("a", "What do plants need to grow?", ("sunlight and water", "iron", "wood"), 0),
    Item("b", "Which of these is a metal?", ("glass", "iron"), 1),
    Item("c", "The sun is what?", ("a star", "a rock", "paper", "wool"), 0),
    Item("d", "The moon is what?", ("a rock", "wood"), 0),
]


@pytest.fixture
def tokenizer():
    return byte_level_tokenizer()


@pytest.fixture(params=["memory", "disk"])
def folder(request, tmp_path):
    """Where a cache keeps its items: None is in memory."""
    return tmp_path / "trunk" if request.param == "disk" else None


def _adapted(tokenizer, options, seed=0):
    base = tiny_llama(seed, vocab_size=len(tokenizer), max_position_embeddings=256)
    return get_peft_model(base, config_for("llama", layers_to_transform=[2, 3], **options)).eval()


@pytest.mark.parametrize("scoring", [Cloze, Letter])
def test_cached_predictions_equal_uncached_ones_in_any_batch(tokenizer, scoring, folder):
    model, collate = _adapted(tokenizer, {}), scoring(tokenizer)
    cache = TrunkCache(model, folder=folder)
    for items in (ITEMS[:2], ITEMS[2:]):
        predict(model, collate(items), num_samples=3, trunk_cache=cache)
    assert len(cache) == 4 and cache.skipped == 2 and cache.size > 0
    mixed = collate([ITEMS[3], ITEMS[0], ITEMS[2]])
    plain = predict(model, mixed, num_samples=3, chunk_size=2)
    cached = predict(model, mixed, num_samples=3, chunk_size=2, trunk_cache=cache)
    assert distance(plain.probabilities, cached.probabilities) < 1e-6
    assert plain.probabilities.std() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_the_same_batch_a_served_forward_is_the_same_bit_for_bit(tokenizer, dtype, folder):
    model, batch = _adapted(tokenizer, {}).to(dtype), Cloze(tokenizer)(ITEMS)
    cache = TrunkCache(model, folder=folder)
    logits = []
    for _ in range(2):
        with torch.no_grad(), cache.serve(batch):
            logits.append(batch.choice_logits(model))
    assert (cache.forwards, cache.served) == (2, 1)
    assert torch.equal(logits[0], logits[1])
    assert cache._assemble(batch, _keys(batch)).dtype == dtype


def test_the_frozen_layers_do_not_run_again(tokenizer):
    model, collate = _adapted(tokenizer, {}), Cloze(tokenizer)
    calls = []
    layers = model.get_base_model().model.layers
    for number, layer in enumerate(layers):
        layer.self_attn.register_forward_hook(lambda *_, number=number: calls.append(number))
    cache = TrunkCache(model)
    collate(ITEMS).suited_to(model)  # The model's trial.
    calls.clear()
    predict(model, collate(ITEMS), num_samples=0, trunk_cache=cache)
    assert calls == [0, 1, 2, 3]
    calls.clear()
    predict(model, collate(ITEMS[1:3]), num_samples=0, trunk_cache=cache)
    assert calls == [2, 3]


def test_gradients_with_the_cache_equal_those_without(tokenizer):
    model, collate = _adapted(tokenizer, {}), Cloze(tokenizer)
    cache, gradients = TrunkCache(model), []
    predict(model, collate(ITEMS), num_samples=0, trunk_cache=cache)
    for serving in (False, True):
        model.zero_grad()
        batch = collate(ITEMS[:3])
        if serving:
            with cache.serve(batch):
                logits = batch.choice_logits(model)
        else:
            logits = batch.choice_logits(model)
        torch.nn.functional.cross_entropy(logits, batch.labels).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert gradients[0].abs().max() > 1e-4
    assert distance(gradients[0], gradients[1]) < 1e-6


def test_another_method_on_the_same_layers_reads_the_same_items(tokenizer):
    collate = Cloze(tokenizer)
    one, other = _adapted(tokenizer, {}), _adapted(tokenizer, {"r": 2})
    cache = TrunkCache(one)
    predict(one, collate(ITEMS), num_samples=0, trunk_cache=cache)
    rebound = cache.rebind(other)
    assert len(rebound) == 4
    expected = predict(other, collate(ITEMS), num_samples=0).probabilities
    assert distance(predict(other, collate(ITEMS), num_samples=0, trunk_cache=rebound).probabilities, expected) < 1e-6
    with pytest.raises(ValueError, match="2 layers in the cache"):
        cache.rebind(bayesian("llama"))


def test_there_is_no_trunk_to_cache_where_something_below_changes(tokenizer):
    assert frozen_trunk(bayesian("llama")) == []
    assert frozen_trunk(get_peft_model(tiny_gpt2(), config_for("gpt2", layers_to_transform=[2]))) != []
    dropping = get_peft_model(tiny_gpt2(resid_pdrop=0.1), config_for("gpt2", layers_to_transform=[2]))
    assert frozen_trunk(dropping) == []
    trained_embedding = get_peft_model(
        tiny_llama(), config_for("llama", layers_to_transform=[2], modules_to_save=["embed_tokens"])
    )
    assert frozen_trunk(trained_embedding) == []
    trained_positions = get_peft_model(
        tiny_gpt2(), config_for("gpt2", layers_to_transform=[2], modules_to_save=["wpe"])
    )
    assert frozen_trunk(trained_positions) == []
    for parameter in (*trained_embedding.parameters(), *trained_positions.parameters()):
        # As after loading an adapter for inference: what was trained is no longer marked.
        parameter.requires_grad_(False)
    assert frozen_trunk(trained_embedding) == [] and frozen_trunk(trained_positions) == []
    trained_head = get_peft_model(
        tiny_llama(), config_for("llama", layers_to_transform=[2], modules_to_save=["lm_head"])
    )
    assert len(frozen_trunk(trained_head)) == 2


def test_a_forward_that_a_wrapper_had_replaced_is_put_back(tokenizer):
    model, batch = _adapted(tokenizer, {}), Cloze(tokenizer)(ITEMS)
    batch.suited_to(model)  # The model's trial.
    layer, calls = frozen_trunk(model)[0], []
    own = layer.forward
    layer.forward = wrapper = lambda *args, **kwargs: calls.append(1) or own(*args, **kwargs)
    cache = TrunkCache(model)
    for _ in range(2):
        predict(model, batch, num_samples=0, trunk_cache=cache)
    assert len(calls) == 1 and layer.forward is wrapper


def test_autocast_inside_the_forward_has_items_of_its_own(tokenizer, folder):
    model, batch = _adapted(tokenizer, {}), Cloze(tokenizer)(ITEMS)
    plain = predict(model, batch, num_samples=0)
    cache, own = TrunkCache(model, folder=folder), model.forward
    # As accelerate does it: autocast begins inside of `model.forward`, where nobody outside sees it.
    model.forward = torch.autocast("cpu", torch.bfloat16)(own)
    rounded = predict(model, batch, num_samples=0, trunk_cache=cache)
    model.forward = own
    assert distance(rounded.probabilities, plain.probabilities) > 1e-4
    for _ in range(2):
        found = predict(model, batch, num_samples=0, trunk_cache=cache)
        assert torch.equal(found.probabilities, plain.probabilities)
    assert len(cache) == 2 * len(ITEMS) and (cache.forwards, cache.served) == (3, 1)


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def config(tiny_base, data):  # noqa: F811
    return RunConfig(
        model=ModelConfig(name=str(tiny_base), device="cpu"),
        task=TaskConfig(name=str(data)),
        method=BayesianLora(r=2, last_layers=2, prior_std=0.3),
        train=TrainConfig(epochs=2, batch_size=4, logging_steps=1, learning_rate=0.01),
        num_samples=2,
    )


def _kept_in(config, folder):
    return replace(config, train=replace(config.train, cache_trunk_folder=str(folder)))


def _trained(config, output):
    """Losses and gradient norms [steps, 2], and all trained weights."""
    history = train(config, output, evaluate_dev=False).metrics["history"]
    weights = load_file(output / "adapter" / "adapter_model.safetensors")
    return torch.tensor([[entry["loss"], entry["grad_norm"]] for entry in history]), weights


def test_a_run_from_disk_has_the_losses_and_gradients_of_one_without_a_cache(config, tmp_path, caplog):
    caplog.set_level(logging.DEBUG, "bayeslora")
    without = replace(config, train=replace(config.train, cache_trunk=False))
    steps, weights = _trained(without, tmp_path / "without")
    assert not any("trunk cache" in message for message in caplog.messages)
    assert len(steps) == 6 and steps[:, 1].min() > 1e-3
    for name, skipped in (("first", 3), ("second", 6)):
        caplog.clear()
        found, trained = _trained(_kept_in(config, tmp_path / "trunk"), tmp_path / name)
        torch.testing.assert_close(found, steps, rtol=1e-4, atol=1e-5)
        for key, value in weights.items():
            assert distance(trained[key], value) < 1e-3
        (line,) = [message for message in caplog.messages if message.startswith("trunk cache")]
        assert line.startswith(f"trunk cache: 2 of 4 layers served from {tmp_path / 'trunk'}; 12 items, ")
        assert line.endswith(f" MB, {skipped} of 6 forwards skipped")


def test_a_finished_run_predicts_from_the_folder_and_fills_it(config, tmp_path):
    train(config, tmp_path / "plain", evaluate_dev=False)
    assert load_run(tmp_path / "plain").trunk_cache is None
    train(_kept_in(config, tmp_path / "trunk"), tmp_path / "run", evaluate_dev=False)
    assert len(load_run(tmp_path / "run").trunk_cache) == 12
    assert evaluate(tmp_path / "run")["nll"] == pytest.approx(evaluate(tmp_path / "plain")["nll"], rel=1e-4)
    run = load_run(tmp_path / "run")
    items = task_items(config.task).test
    assert len(run.trunk_cache) == 12 + len(items)
    run.predict(items)
    assert run.trunk_cache.forwards == run.trunk_cache.served > 0


def test_the_summary_of_a_cache_in_memory(tokenizer):
    model, batch = _adapted(tokenizer, {}), Cloze(tokenizer)(ITEMS)
    cache = TrunkCache(model)
    for _ in range(3):
        predict(model, batch, num_samples=0, trunk_cache=cache)
    megabytes = batch["lengths"].sum().item() * 32 * 4 / 1e6
    assert cache.summary() == (
        f"trunk cache: 2 of 4 layers served from memory; 4 items, {megabytes:.1f} MB, 2 of 3 forwards skipped"
    )


def test_a_comparison_keeps_its_items_for_the_next(config, tmp_path, caplog):
    caplog.set_level(logging.DEBUG, "bayeslora")
    wanted = CompareConfig(
        model=config.model,
        tasks={"plants": config.task},
        rows={"lora": RowConfig(Lora()), "bayesian_lora": RowConfig(BayesianLora())},
        adapter=AdapterConfig(r=2, last_layers=2),
        train=_kept_in(config, tmp_path / "trunk").train,
        seeds=[0],
        num_samples=2,
        learning_rates=[1e-3],
        protocol=ProtocolConfig.plain(),
    )
    for output, skipped in (("one", [3, 6]), ("two", [6, 6])):
        caplog.clear()
        compare(wanted, tmp_path / output, {"train": asdict(wanted.train)})
        lines = [message for message in caplog.messages if message.startswith("trunk cache")]
        assert [line.rpartition(" MB, ")[2] for line in lines] == [f"{n} of 6 forwards skipped" for n in skipped]
    moved = replace(wanted, train=config.train)
    # Nothing is left to compute, and another place of the cache makes no other comparison.
    assert len(compare(moved, tmp_path / "two", {"train": asdict(moved.train)}).cells("final")) == 2


def test_classification_has_no_cache(config):
    other = replace(config, task=replace(config.task, scoring="classification"))
    assert open_trunk_cache(other, bayesian("bert", layers_to_transform=[2])) is None


# --- which trunk it is -----------------------------------------------------------------------------------------------


def test_another_trunk_has_another_digest():
    def digest(base, **options):
        model = get_peft_model(base, config_for("llama", **{"layers_to_transform": [2, 3]} | options))
        return trunk_digest(model, frozen_trunk(model))

    def changed(name, by=1e-3):
        base = tiny_llama()
        with torch.no_grad():
            dict(base.named_parameters())[name].flatten()[-1] += by
        return base

    plain = digest(tiny_llama())
    assert digest(tiny_llama(), r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]) == plain
    assert digest(changed("model.layers.2.mlp.up_proj.weight")) == plain
    named = tiny_llama()
    named.config._name_or_path = "other/model"
    committed = tiny_llama()
    committed.config._commit_hash = "0123"
    others = [
        digest(changed("model.embed_tokens.weight")),
        digest(changed("model.layers.1.mlp.up_proj.weight")),
        digest(tiny_llama(), layers_to_transform=[1, 3]),
        digest(tiny_llama().to(torch.bfloat16)),
        digest(tiny_llama(rms_norm_eps=1e-3)),
        digest(tiny_llama(attn_implementation="eager")),
        digest(named),
        digest(committed),
    ]
    assert len({plain, *others}) == len(others) + 1


def test_changed_weights_below_do_not_read_the_items_of_the_first(tokenizer, tmp_path):
    batch = Cloze(tokenizer)(ITEMS)
    for seed in range(2):
        model = _adapted(tokenizer, {}, seed)
        cache = TrunkCache(model, folder=tmp_path)
        assert len(cache) == 0
        expected = predict(model, batch, num_samples=0).probabilities
        for _ in range(2):
            assert torch.equal(predict(model, batch, num_samples=0, trunk_cache=cache).probabilities, expected)
    assert len(list(tmp_path.iterdir())) == 2


# --- the files -------------------------------------------------------------------------------------------------------


def _rows(count, first=0):
    return {
        f"key-{n}": torch.randn(3 + n % 4, 8, generator=torch.Generator().manual_seed(n))
        for n in range(first, first + count)
    }


def _holds(store, rows):
    found = store.get(list(rows))
    return found is not None and all(torch.equal(a, b) for a, b in zip(found, rows.values(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_store_gives_back_what_it_was_given(dtype, folder):
    store = MemoryStore(10**6) if folder is None else DiskStore(folder, 10**6)
    rows = {key: row.to(dtype) for key, row in _rows(5).items()}
    given = {key: row.clone() for key, row in rows.items()}
    store.add(given)
    for row in given.values():
        row.zero_()
    assert _holds(store, rows) and len(store) == 5
    assert store.get(["key-1", "unknown"]) is None
    before = store.size
    store.add(dict(list(rows.items())[:3]))
    assert store.size == before
    assert folder is None or _holds(DiskStore(folder, 0), rows)


def test_files_on_disk_are_mapped_and_only_rows_that_are_asked_for_are_read(tmp_path):
    DiskStore(tmp_path, 10**9).add({f"{n}": torch.ones(1000, 1000) * n for n in range(40)})
    before = _resident()
    store = DiskStore(tmp_path, 10**9)
    (row,) = store.get(["7"])
    assert torch.equal(row, torch.full((1000, 1000), 7.0))
    assert store.size > 160e6 and _resident() - before < 60e6


def _resident():
    """Bytes of memory in use by this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _cut(content):
    return content[: len(content) // 2]


def _flipped(content):
    """One bit of the last row, which is behind the header."""
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


@pytest.mark.parametrize("damage", [_cut, _flipped, lambda content: b"", lambda content: b"x" * len(content)])
def test_a_broken_file_is_left_out_and_its_rows_are_added_again(tmp_path, damage, caplog):
    good, bad = _rows(4), _rows(4, first=4)
    store = DiskStore(tmp_path, 10**6)
    store.add(good)
    (other,) = tmp_path.glob("*.safetensors")
    store.add(bad)
    (path,) = set(tmp_path.glob("*.safetensors")) - {other}
    path.write_bytes(damage(path.read_bytes()))
    for reader in (store, DiskStore(tmp_path, 10**6)):
        assert _holds(reader, good)
        assert reader.get(list(bad)) is None
    assert len([message for message in caplog.messages if "is broken" in message]) == 1
    store.add(bad)
    assert _holds(store, good | bad) and _holds(DiskStore(tmp_path, 10**6), good | bad)


def test_files_may_be_deleted_at_any_time(tmp_path):
    store = DiskStore(tmp_path, 10**6)
    store.add(_rows(4))
    for path in tmp_path.iterdir():
        path.unlink()
    assert store.get(list(_rows(4))) is None and len(store) == 0
    tmp_path.rmdir()
    assert store.get(list(_rows(4))) is None and store.size == 0
    store.add(_rows(2))
    assert _holds(store, _rows(2))


def _process(target, *arguments):
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process


def _add_all(folder, order):
    store = DiskStore(folder, 10**9)
    for n in order:
        store.add(_rows(3, first=n))
        assert _holds(store, _rows(3, first=n))


def test_processes_share_a_folder(tmp_path):
    reader = DiskStore(tmp_path, 10**9)
    numbers = range(0, 60, 2)
    processes = [_process(_add_all, tmp_path, order) for order in (numbers, reversed(numbers), numbers)]
    while any(process.is_alive() for process in processes):
        assert reader.get(["key-0", "never"]) is None
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert _holds(reader, _rows(61))
    stored = [key for path in tmp_path.glob("*.safetensors") for key in load_file(path)]
    assert sorted(stored) == sorted(_rows(61))


def _die_before_renaming(folder):
    saving.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    DiskStore(folder, 10**6).add(_rows(4, first=4))


def test_a_kill_while_writing_leaves_what_was_there(tmp_path):
    DiskStore(tmp_path, 10**6).add(_rows(4))
    process = _process(_die_before_renaming, tmp_path)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert list(tmp_path.glob(".*.safetensors.*"))
    store = DiskStore(tmp_path, 10**6)
    assert _holds(store, _rows(4)) and len(store) == 4
    store.add(_rows(8))
    assert _holds(store, _rows(8)) and not list(tmp_path.glob(".*.safetensors.*"))


def test_nothing_is_added_beyond_the_limit(folder, caplog):
    caplog.set_level(logging.DEBUG, "bayeslora")
    limit = 3000
    store = MemoryStore(limit) if folder is None else DiskStore(folder, limit)
    for n in range(0, 80, 4):
        store.add(_rows(4, first=n))
    assert 0 < len(store) < 80 and store.size <= limit
    assert _holds(store, _rows(len(store)))
    assert len([message for message in caplog.messages if "limit of 3000 bytes" in message]) == 1
    if folder is not None:
        assert sum(path.stat().st_size for path in folder.glob("*.safetensors")) == store.size
        # What other processes wrote counts too.
        other = DiskStore(folder, limit)
        other.add(_rows(40, first=100))
        assert len(other) == len(store)


@pytest.mark.parametrize(
    "failing", ["bayeslora.system.files.os.fsync", "pathlib.Path.write_bytes", "pathlib.Path.mkdir"]
)
def test_a_full_disk_costs_a_warning_and_nothing_else(tokenizer, tmp_path, monkeypatch, caplog, failing):
    model, collate = _adapted(tokenizer, {}), Cloze(tokenizer)
    cache = TrunkCache(model, folder=tmp_path / "trunk")
    kept, lost = collate(ITEMS[:2]), collate(ITEMS[2:])
    predict(model, kept, num_samples=0, trunk_cache=cache)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(failing, full)
        for batch in (lost, lost, kept, collate(ITEMS[1:3])):
            expected = predict(model, batch, num_samples=0).probabilities
            assert torch.equal(predict(model, batch, num_samples=0, trunk_cache=cache).probabilities, expected)
    assert (cache.forwards, cache.served, len(cache)) == (5, 1, 2)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len([message for message in warnings if "No space left on device" in message]) == 1
    (rest,) = (tmp_path / "trunk").iterdir()
    assert [path.suffix for path in rest.iterdir() if path.name != ".lock"] == [".safetensors"]


def test_a_file_in_place_of_the_folder_is_an_error(tokenizer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="name another folder"):
        TrunkCache(_adapted(tokenizer, {}), folder=tmp_path / "file")

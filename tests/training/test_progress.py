"""What a training shows: a table of its means, nothing of the Trainer's, and no KL where there is none."""

import re

import pytest
from test_trainer import dataset, trainer_for

from bayeslora.methods import Lora
from bayeslora.system.console import progress
from bayeslora.training.progress import training_shown
from conftest import tiny_llama


def rows_of(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if re.match(r" +\d", line)]


def test_the_table_has_the_means_of_all_steps(tmp_path, capsys):
    trainer = trainer_for("cloze", tmp_path, max_steps=24, disable_tqdm=False)
    with training_shown(trainer, "item"):
        trainer.train()
    said = capsys.readouterr()
    assert said.out == "" and "{" not in said.err
    (head,) = [line for line in said.err.splitlines() if "step" in line]
    assert head.split() == ["step", "epoch", "nll/item", "kl/item", "learning", "rate"]
    rows, logs = rows_of(said.err), [entry for entry in trainer.state.log_history if "nll" in entry]
    # 24 logs, at most 20 lines: of every second step.
    assert [int(row[0]) for row in rows] == list(range(2, 25, 2))
    first = int(rows[0][0])
    for column, name, count in ((2, "nll", 1), (3, "kl", len(dataset("cloze")))):
        expected = sum(entry[name] for entry in logs[:first]) / first / count
        assert float(rows[0][column]) == pytest.approx(expected, abs=6e-4)


def test_a_method_without_a_kl_has_no_column_of_it(tmp_path, capsys):
    model = Lora(r=2, last_layers=1).adapt(tiny_llama(vocab_size=320, max_position_embeddings=2048), "causal_lm")
    trainer = trainer_for("cloze", tmp_path, model=model, disable_tqdm=False)
    with training_shown(trainer, "item"):
        trainer.train()
    said = capsys.readouterr().err
    assert "nll/item" in said and "kl" not in said
    assert len(rows_of(said)) == 3


@pytest.mark.parametrize("quiet", ["disable_tqdm", "nested"])
def test_nothing_is_said_where_it_was_switched_off_or_is_a_part_of_other_work(quiet, tmp_path, capsys):
    trainer = trainer_for("cloze", tmp_path, disable_tqdm=quiet == "disable_tqdm")
    with progress("compare", 1, show=quiet == "nested"), training_shown(trainer, "item"):
        trainer.train()
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")
    assert trainer.state.global_step == 3

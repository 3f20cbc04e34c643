"""Config files, read by one parser again and again."""

from pathlib import Path

import pytest

from bayeslora.experiments.learning_rates import SweepConfig
from bayeslora.experiments.sequences.config import ContinualConfig
from bayeslora.methods import BayesianLora, Lora
from bayeslora.methods.ivon import Ivon
from bayeslora.options.parsing import config_parser, instantiate, parse_file
from bayeslora.runs.config import RunConfig
from bayeslora.runs.config_files import dump_config, parse_config

FILES = {
    "seeds": "seed: 3\nnum_samples: 5\ntrain: {max_steps: 4, arguments: {adam_beta1: 0.8}}\n",
    "lora": "method: {class_path: Lora, init_args: {r: 2}}\n",
    "ivon": f"method: {{class_path: {Ivon.__module__}.Ivon, init_args: {{prior_std: 0.5}}}}\ntask: {{name: piqa}}\n",
    "default": "train: {epochs: 2}\n",
    "wrong": "train: {epochs: many}\n",
}


def test_what_a_file_says_does_not_depend_on_what_was_read_before(tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    expected = {}
    for name in set(FILES) - {"wrong"}:
        parser = config_parser(RunConfig)
        expected[name] = dump_config(instantiate(parser, parser.parse_path(str(tmp_path / name)), RunConfig))
    assert len(set(expected.values())) == len(expected)
    for name in (*FILES, *reversed(FILES)):
        if name == "wrong":
            with pytest.raises(ValueError, match="epochs"):
                parse_config(tmp_path / name)
        else:
            assert dump_config(parse_config(tmp_path / name)) == expected[name], name


def test_a_config_that_cannot_be_written_is_an_error_of_python() -> None:
    config = RunConfig(method=BayesianLora(r=2))
    assert "r: 2" in dump_config(config)
    config.train.epochs = "many"  # type: ignore[assignment]
    with pytest.raises(ValueError, match="epochs"):
        dump_config(config)
    assert "r: 3" in dump_config(RunConfig(method=Lora(r=3)))


def test_a_method_at_the_wrong_depth_of_a_row_is_told_its_place(tmp_path: Path) -> None:
    """A row of `compare` and `sweep` has a method among others; one of `continual` is a method."""
    path = tmp_path / "config.yaml"
    path.write_text("rows: {lora: {class_path: Lora, init_args: {r: 4}}}")
    with pytest.raises(ValueError, match=r"rows\.lora must be a mapping of .* write method: \{class_path: Lora\}"):
        parse_file(path, SweepConfig)
    path.write_text("rows: {lora: {method: {class_path: Lora}}}")
    with pytest.raises(ValueError, match=r"rows\.lora is a method itself; write its class_path and init_args there"):
        parse_file(path, ContinualConfig)

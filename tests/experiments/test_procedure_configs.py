"""The procedures' example and benchmark files name options that exist."""

from pathlib import Path

import pytest

from bayeslora.experiments.sequences.config import ChainConfig, ContinualConfig
from bayeslora.options.parsing import config_parser, instantiate

ROOT = Path(__file__).parents[2]
FILES = [*(ROOT / "examples" / "procedures").glob("*.yaml"), *(ROOT / "benchmarks" / "procedures").glob("*.yaml")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_are_configs(path: Path) -> None:
    kind: type[ChainConfig] | type[ContinualConfig] = ChainConfig if "chain" in path.stem else ContinualConfig
    parser = config_parser(kind)
    parser.exit_on_error = False
    built = instantiate(parser, parser.parse_path(str(path)), kind)
    if isinstance(built, ContinualConfig):
        row = next(row for row in built.rows if row.startswith("sd_lora"))
        run = built.run(row, "mrpc", 3, "runs/before")
        assert (run.seed, run.method.r, run.method.init_from) == (3, built.adapter.r, "runs/before")
        assert built.rows[row].init_from is None
    else:
        assert built.block(2).model.merge == ["../block0", "../block1"]
        assert len({built.block(number).seed for number in range(built.blocks)}) == built.blocks

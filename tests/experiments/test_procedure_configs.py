"""The procedures' examples and studies name options that exist."""

from pathlib import Path

import pytest

from bayeslora.experiments.sequences.config import ChainConfig, ContinualConfig
from bayeslora.options.parsing import config_parser, instantiate

ROOT = Path(__file__).parents[2]
FOLDERS = (ROOT / "examples" / "sequences", ROOT / "studies" / "systems")
FILES = [path for folder in FOLDERS for name in ("chain", "continual") for path in folder.rglob(f"{name}.yaml")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
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

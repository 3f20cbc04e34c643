"""Which number type "auto" comes to."""

import logging

import pytest
import torch

from bayeslora.models import number_type as module
from bayeslora.models.number_type import number_type


@pytest.fixture(params=[True, False], ids=["units", "no units"])
def units(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: request.param)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return bool(request.param)


def test_what_is_named_stays(units: bool) -> None:
    assert number_type("float16", "offline:smollm2", "cpu") == "float16"


def test_an_accelerator_takes_what_is_stored(units: bool) -> None:
    assert number_type("auto", "offline:smollm2", "cuda:1") == "auto"


def test_a_cpu_takes_the_type_that_it_is_fast_in(units: bool, caplog: pytest.LogCaptureFixture) -> None:
    module._say.cache_clear()
    with caplog.at_level(logging.INFO, "bayeslora"):
        found = [number_type("auto", name, "cpu") for name in ("offline:smollm2", "offline:smollm2", "org/model")]
    # Of a model that is stored in float32 nothing is taken unasked.
    assert found == (["bfloat16", "bfloat16", "auto"] if units else ["float32"] * 3)
    assert len(caplog.records) == units

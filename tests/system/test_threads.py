"""Small matrices take few threads, and afterwards there are as many as before."""

from collections.abc import Iterator

import pytest
import torch

from bayeslora.readouts import evidence
from bayeslora.system.devices import threads_for


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("rows", "threads"), [(0, 1), (1999, 1), (4000, 2), (10**6, 3)])
def test_threads_by_size(rows: int, threads: int) -> None:
    inside = threads_for(rows)
    inside.__enter__()
    assert torch.get_num_threads() == threads
    assert not inside.__exit__(KeyError, KeyError(), None)
    assert torch.get_num_threads() == 3


def test_the_evidence_of_few_items_is_computed_by_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def noted(matrix: torch.Tensor) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return torch.linalg.cholesky(matrix)

    monkeypatch.setattr(evidence, "cholesky", noted)
    rows = torch.eye(6, dtype=torch.float64)
    evidence.fit_scales([rows], rows[:, :1])
    # The last look, at the scales that were chosen, is one alone.
    assert set(seen[:-1]) == {1} and torch.get_num_threads() == 3

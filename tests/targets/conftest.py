"""Runs of a tiny network, one thread, and a cache folder of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tiny_run import use_tiny_network


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("FINEPRUNING_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny_network(monkeypatch.setattr)

"""A seeded share of the cases of benchmarks/loader_fuzz.py."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from fuzz_models import judge, write_all
from mutations import MUTATIONS, Model, tamper

CASES = 40


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_all(tmp_path_factory.mktemp("models"))


def test_unchanged_models_run(directories: list[Path]) -> None:
    assert [judge(directory) for directory in directories] == ["accepted, run"] * len(directories)


@pytest.mark.parametrize("kind", sorted(MUTATIONS))
def test_mutated_directories(directories: list[Path], tmp_path: Path, kind: str) -> None:
    """Each is refused with the typed error, or loads and runs with the right result."""
    models = [Model.read(directory) for directory in directories]
    results: Counter[str] = Counter()
    for case in range(CASES):
        chance = random.Random(f"{kind} {case}")
        MUTATIONS[kind](chance, chance.choice(models)).write(tmp_path / "model")
        results[judge(tmp_path / "model")] += 1
    assert results["refused"] > CASES // 4


def test_directories_of_links_pipes_and_devices(directories: list[Path], tmp_path: Path) -> None:
    model = Model.read(directories[0])
    results: Counter[str] = Counter()
    for case in range(3 * CASES):
        model.write(tmp_path / "model")
        path = tamper(random.Random(case), tmp_path / "model", directories[0])
        results[judge(path)] += 1
    assert set(results) == {"refused", "accepted, run"}

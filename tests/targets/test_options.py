"""The options that say what a run is to end with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import finepruning.compress as compress_module
from finepruning.cli import run
from finepruning.compress import resolve
from finepruning.config import TARGETS, CompressConfig
from finepruning.errors import ArgumentError

VALUES: dict[str, Any] = {
    "target_density": 0.2,
    "target_bytes": 1000,
    "target_latency": 2.5,
    "max_accuracy_drop": 1.0,
}


def test_a_run_without_a_target_keeps_a_tenth() -> None:
    assert resolve(CompressConfig(model="alexnet")).target_density == 0.1
    assert resolve(CompressConfig(model="alexnet", target_bytes=1000)).target_density is None


@pytest.mark.parametrize("first", TARGETS)
@pytest.mark.parametrize("second", TARGETS)
def test_a_run_has_one_target(first: str, second: str) -> None:
    values = {name: VALUES[name] for name in (first, second)}
    if first == second:
        assert getattr(CompressConfig(**values), first) == VALUES[first]
        return
    with pytest.raises(ArgumentError, match=f"({first} and {second}|{second} and {first}) are given"):
        CompressConfig(**values)


def test_targets_exclude_one_another_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compress", "--target-bytes", "2MB", "--target-density", "0.1"]) == 2
    assert "target_density and target_bytes are given" in capsys.readouterr().err


@pytest.mark.parametrize("as_file", [False, True])
def test_bytes_may_have_a_unit(
    as_file: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[CompressConfig] = []
    monkeypatch.setattr(compress_module, "dry_run", lambda config: asked.append(config) or {})
    (tmp_path / "options.yaml").write_text("target-bytes: 2MiB\n")
    line = ["--config", str(tmp_path / "options.yaml")] if as_file else ["--target-bytes", "2MiB"]
    assert run(["compress", "--dry-run", *line]) == 0
    assert asked[0].target_bytes == 2 << 20
    assert run(["compress", "--target-bytes", "small"]) == 2
    assert "'small' is no size" in capsys.readouterr().err

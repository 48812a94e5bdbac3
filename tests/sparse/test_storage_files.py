"""Paths and files that are no model directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from finepruning.errors import ModelFileError
from finepruning.sparse.storage import load


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_truncated_files(directory: Path, name: str, kept: float) -> None:
    data = (directory / name).read_bytes()
    (directory / name).write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ModelFileError, match=name):
        load(directory)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_files(directory: Path, name: str) -> None:
    (directory / name).unlink()
    with pytest.raises(ModelFileError, match=name):
        load(directory)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_pipes_and_folders_are_no_files(directory: Path, name: str) -> None:
    (directory / name).unlink()
    os.mkfifo(directory / name)
    with pytest.raises(ModelFileError, match="regular file"):
        load(directory)
    (directory / name).unlink()
    (directory / name).mkdir()
    with pytest.raises(ModelFileError, match="regular file"):
        load(directory)


def test_paths_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="not a model directory"):
        load(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelFileError, match="not a model directory"):
        load(tmp_path / "file")
    for name in ("zero\0byte", "a" * 5000, "a/" * 3000, "\udcff"):
        with pytest.raises(ModelFileError, match="not a model directory"):
            load(name)

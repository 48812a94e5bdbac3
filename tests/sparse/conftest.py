"""A saved model directory for every test that alters one."""

from __future__ import annotations

from pathlib import Path

import pytest
from model_files import small_model

from finepruning.sparse.storage import save


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save(small_model(), tmp_path / "model")
    return tmp_path / "model"

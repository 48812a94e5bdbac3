"""What the tests of the engine share."""

from __future__ import annotations

import pytest
from cpu_plans import ISAS

from finepruning import _core


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FINEPRUNING_ISA", request.param)
    name: str = request.param
    assert _core.isa() == name
    return name

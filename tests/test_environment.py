from __future__ import annotations

from pathlib import Path

import pytest

from finepruning.environment import cpu_name

ZEN_4 = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\n"


def test_generations_of_one_name_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: ZEN_4)
    assert cpu_name() == "AMD EPYC (family 25, model 17)"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: ZEN_4.replace("25", "26"))
    assert cpu_name() == "AMD EPYC (family 26, model 17)"


def test_a_machine_that_tells_nothing_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert cpu_name()

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from finepruning.bench.timing import Timing, interleave


class FakeStopwatch:
    """Every call takes what it returns; records who was called, in order."""

    def milliseconds(self, call: Callable[[], Any]) -> float:
        return float(call())


def test_quantiles() -> None:
    timing = Timing(tuple(float(v) for v in (5, 1, 4, 2, 3)))
    assert (timing.median_ms, timing.p20_ms, timing.p80_ms) == (3.0, 1.8, 4.2)
    single = Timing((7.0,))
    assert single.p20_ms == single.median_ms == single.p80_ms == 7.0


def test_calls_take_turns_and_the_order_alternates() -> None:
    order: list[str] = []

    def named(name: str, milliseconds: float) -> Callable[[], float]:
        def call() -> float:
            order.append(name)
            return milliseconds

        return call

    calls = {"a": named("a", 300.0), "b": named("b", 600.0)}
    timings = interleave(calls, stopwatch=FakeStopwatch(), seconds=1.2, min_samples=4)
    assert timings["a"].median_ms == 300.0
    assert timings["b"].median_ms == 600.0
    assert order[:4] == ["a", "b", "a", "b"]  # warming up
    assert order[4:8] == ["a", "b", "b", "a"]
    assert all(len(t.samples_ms) == 4 for t in timings.values())


def test_short_calls_are_timed_more_often_and_warmed_up_each_turn() -> None:
    count = {"fast": 0, "slow": 0}

    def fast() -> float:
        count["fast"] += 1
        return 10.0

    def slow() -> float:
        count["slow"] += 1
        return 1000.0

    timings = interleave({"fast": fast, "slow": slow}, stopwatch=FakeStopwatch(), seconds=1.0, min_samples=3)
    assert len(timings["slow"].samples_ms) == 3
    assert len(timings["fast"].samples_ms) == 30
    assert count["fast"] == 2 + 3 + 30


@pytest.mark.parametrize("seconds", [0.001, 1.0])
def test_even_the_slowest_call_gets_its_samples(seconds: float) -> None:
    timings = interleave({"x": lambda: 90_000.0}, stopwatch=FakeStopwatch(), seconds=seconds)
    assert len(timings["x"].samples_ms) == 5

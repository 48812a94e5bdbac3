from __future__ import annotations

import pytest

from finepruning.bench.floor import MachineLimits, floor_ms, network_floor_ms, nonzero_macs
from finepruning.engine.plan import StepReport

LIMITS = MachineLimits(macs_per_second=1e9, bytes_per_second=1e9)


def step(op: str, shape: tuple[int, ...], nnz: int | None) -> StepReport:
    return StepReport("layer", op, (), "kernel", shape, nnz, None if nnz is None else 10 * nnz, 0)


def test_a_convolution_meets_every_position() -> None:
    assert nonzero_macs(step("conv2d", (2, 8, 5, 7), 100)) == 100 * 2 * 5 * 7


def test_a_fully_connected_layer_meets_every_row() -> None:
    assert nonzero_macs(step("linear", (4, 10), 100)) == 400
    assert nonzero_macs(step("linear", (4, 3, 10), 100)) == 1200


def test_the_floor_is_the_larger_of_arithmetic_and_reading() -> None:
    fully_connected = step("linear", (1, 10), 1_000_000)
    assert floor_ms(fully_connected, LIMITS) == pytest.approx(6.0)  # 6 bytes a nonzero
    assert floor_ms(fully_connected, LIMITS, value_bytes=2) == pytest.approx(4.0)
    convolution = step("conv2d", (1, 8, 10, 10), 1_000_000)
    assert floor_ms(convolution, LIMITS) == pytest.approx(100.0)
    pool = step("max_pool2d", (1, 8, 10, 10), None)
    assert floor_ms(pool, LIMITS) == 0.0
    assert network_floor_ms([fully_connected, convolution, pool], LIMITS) == pytest.approx(106.0)

"""Timing several calls against each other: interleaved, warm, with the spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

MIN_SAMPLES = 5
MAX_TURNS = 50
MAX_IN_A_ROW = 10
LONG_SECONDS = 0.25  # a call this long is not disturbed by what the one before it left behind


@dataclass(frozen=True)
class Timing:
    """Wall-clock times of one call, in milliseconds, in the order taken."""

    samples_ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        return statistics.median(self.samples_ms)

    @property
    def p20_ms(self) -> float:
        return self._quantile(0.2)

    @property
    def p80_ms(self) -> float:
        return self._quantile(0.8)

    def _quantile(self, q: float) -> float:
        """Linear interpolation between order statistics, as numpy's default."""
        ordered = sorted(self.samples_ms)
        position = q * (len(ordered) - 1)
        low = int(position)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (position - low) * (ordered[high] - ordered[low])


class Stopwatch(Protocol):
    """Measures one call on one kind of device."""

    def milliseconds(self, call: Callable[[], Any]) -> float: ...


class HostStopwatch:
    """Wall clock around a call that has finished when it returns."""

    def milliseconds(self, call: Callable[[], Any]) -> float:
        start = time.perf_counter_ns()
        call()
        return (time.perf_counter_ns() - start) / 1e6


class CudaStopwatch:
    """Events around what a call enqueues on the current stream of a device.

    Args:
        device: where the call runs, which must be the current device.
        flush: overwritten before each call, to empty the caches of a smaller L2; None leaves them hot.
    """

    def __init__(self, device: torch.device, flush: Tensor | None = None) -> None:
        self.device, self.flush = device, flush

    def milliseconds(self, call: Callable[[], Any]) -> float:
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        if self.flush is not None:
            self.flush.zero_()
        stream = torch.cuda.current_stream(self.device)
        start.record(stream)
        call()
        end.record(stream)
        end.synchronize()
        return float(start.elapsed_time(end))


def interleave(
    calls: Mapping[str, Callable[[], Any]],
    *,
    stopwatch: Stopwatch,
    seconds: float = 1.0,
    min_samples: int = MIN_SAMPLES,
) -> dict[str, Timing]:
    """Time every call in turns, so that a slow spell of the machine meets all of them alike.

    In each turn a call first runs once untimed, unless it is long: that brings its weights back into the
    caches (all times are of hot caches) and lets the threads that another runtime left spinning come to
    rest. Then it is timed, several times if it is short. The order is reversed from turn to turn.

    Args:
        calls: name -> call without arguments.
        stopwatch: measures one call on the device it runs on.
        seconds: timed seconds wanted of each call; slow calls get at least ``min_samples`` samples.
        min_samples: fewest samples of each call.

    Returns:
        name -> `Timing`, in the order of ``calls``.
    """
    single = {name: stopwatch.milliseconds(call) / 1e3 for name, call in calls.items()}  # also warms up
    single = {name: min(single[name], stopwatch.milliseconds(call) / 1e3) for name, call in calls.items()}
    slowest = max(single.values(), default=1.0)
    turns = min(MAX_TURNS, max(min_samples, round(seconds / max(slowest, 1e-3))))
    in_a_row = {
        name: max(1, min(MAX_IN_A_ROW, int(seconds / turns / max(t, 1e-6)))) for name, t in single.items()
    }
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns):
        for name in list(calls)[:: 1 if turn % 2 == 0 else -1]:
            call = calls[name]
            if single[name] < LONG_SECONDS:
                call()
            samples[name] += [stopwatch.milliseconds(call) for _ in range(in_a_row[name])]
    return {name: Timing(tuple(values)) for name, values in samples.items()}

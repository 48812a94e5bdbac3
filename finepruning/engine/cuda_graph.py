"""One captured CUDA graph: recorded once, replayed on any stream.

Nothing here waits for the device but the recording. See `Recording` for what keeps its memory its own.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

# cuDNN's choice of algorithm and cuBLAS's workspaces are process-wide: one recording at a time.
recording = threading.Lock()


class Recording:
    """What ``launch`` enqueues, as a CUDA graph with memory of its own.

    ``launch`` runs once eagerly, which compiles Triton kernels, loads libraries and lets cuDNN try its
    algorithms, and once under capture. What PyTorch allocates on the way comes from the graph's private
    pool. cuBLAS keeps a workspace for each stream and hands it to whoever uses that stream next; streams
    come from a small pool, so two graphs might be given one workspace and spoil each other's results when
    they run at once. Workspaces are therefore dropped before the capture, which then allocates one in its
    own pool, and after it. Python's cyclic garbage is not collected meanwhile: it may hold another graph,
    which must not be destroyed during a capture.

    Args:
        device: a CUDA device with an index, which must be the current one.
        launch: enqueues work on the current stream and neither waits nor takes decisions.

    Raises:
        torch.OutOfMemoryError: no memory.
    """

    def __init__(self, device: torch.device, launch: Callable[[], None]) -> None:
        self.device = device
        benchmark = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = True
        try:
            stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream), torch.no_grad():
                launch()
            stream.synchronize()
            torch._C._cuda_clearCublasWorkspaces()
            self._graph = torch.cuda.CUDAGraph()
            # Other threads may go on allocating and launching on streams of their own.
            with (
                torch.no_grad(),
                _no_collection(),
                torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"),
            ):
                launch()
            torch._C._cuda_clearCublasWorkspaces()
        finally:
            torch.backends.cudnn.benchmark = benchmark
        torch.cuda.empty_cache()

    def replay(self) -> None:
        """Enqueue the recorded work on the current stream."""
        self._graph.replay()

    @property
    def pool_bytes(self) -> int:
        """Device memory of the graph's private pool."""
        segments = torch.cuda.memory.memory_snapshot(self._graph.pool(), include_traces=False)  # type: ignore[no-untyped-call]
        return sum(int(segment["total_size"]) for segment in segments)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def replay_seconds(device: torch.device, replay: Callable[[], None], samples: int = 11) -> float:
    """Median seconds of one replay on the current stream, after one that is not counted."""
    replay()
    times = []
    for _ in range(samples):
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record(torch.cuda.current_stream(device))
        replay()
        end.record(torch.cuda.current_stream(device))
        end.synchronize()
        times.append(float(start.elapsed_time(end)) / 1e3)
    return sorted(times)[len(times) // 2]

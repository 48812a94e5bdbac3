"""A GPU made of ordinary memory: the calls that the CUDA executor makes, in the order it makes them.

Streams and events only log; a graph's replay runs the recorded launches again. What must be right on a GPU
and can be seen here: which call waits for which, what happens inside a capture, and what when memory ends.
"""

from __future__ import annotations

import contextlib

import torch

from finepruning.engine import cuda, cuda_graph


def segment(total, allocated, *, pool=(0, 0), address=1 << 30):
    """A segment of the allocator's memory that starts with a block in use."""
    blocks = [
        {"size": allocated, "state": "active_allocated"},
        {"size": total - allocated, "state": "inactive"},
    ]
    return {"device": 0, "address": address, "total_size": total, "segment_pool_id": pool, "blocks": blocks}


class FakeGpu:
    """Patches `torch.cuda` for one test. ``log`` holds what was called.

    ``replays``: how often each graph computes; later replays only log, as the interpreter is slow.
    ``segments``: what the allocator holds, as `torch.cuda.memory_snapshot` tells it; each graph adds 2 MiB.
    """

    def __init__(self, monkeypatch, replays=1000):
        self.log = []
        self.segments = []
        self.capturing = False
        log = self.log

        class Stream:
            def __init__(self, device=None):
                self.name = "default" if device == "default" else "side"

            def wait_stream(self, stream):
                log.append(f"{self.name} waits for {stream.name}")

            def wait_event(self, event):
                assert event.recorded, "an event that was never recorded orders nothing"
                log.append(f"{self.name} waits for event")

            def synchronize(self):
                log.append(f"synchronize {self.name}")

        class Event:
            recorded = False

            def __init__(self, enable_timing=False):
                pass

            def record(self, stream):
                self.recorded = True
                log.append(f"record on {stream.name}")

            def synchronize(self):
                log.append("synchronize event")

            def elapsed_time(self, end):
                return 1.0

        class Graph:
            def pool(self):
                return (0, 1)

        @contextlib.contextmanager
        def capture(graph, *, stream, capture_error_mode):
            assert capture_error_mode == "thread_local"
            log.append("capture")
            self.capturing = True
            pool = (0, len(self.segments) + 1)
            self.segments.append(segment(2 << 20, 0, pool=pool))
            try:
                yield
            finally:
                self.capturing = False

        self.stream = Stream("default")
        patches = {
            "Stream": Stream,
            "Event": Event,
            "CUDAGraph": Graph,
            "graph": capture,
            "stream": lambda stream: contextlib.nullcontext(),
            "current_stream": lambda device=None: self.stream,
            "device": lambda device: contextlib.nullcontext(),
            "is_current_stream_capturing": lambda: self.capturing,
            "empty_cache": lambda: None,
            "synchronize": lambda device=None: None,
            "mem_get_info": lambda device=None: (3 << 20, 80 << 30),
        }
        for name, value in patches.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(
            torch.cuda.memory,
            "memory_snapshot",
            lambda pool=None, include_traces=True: (
                [{"total_size": 1000}, {"total_size": 24}] if pool else list(self.segments)
            ),
        )
        monkeypatch.setattr(
            torch._C, "_cuda_clearCublasWorkspaces", lambda: log.append("clear"), raising=False
        )
        monkeypatch.setattr(cuda, "_is_gpu", lambda device: True)
        make = cuda_graph.Recording.__init__

        def recording(this, device, launch):
            def logged():
                log.append("launch")
                launch()

            make(this, device, logged)
            left = iter(range(replays))

            def replay():
                log.append("replay")
                if next(left, None) is not None:
                    launch()

            this._graph.replay = replay

        monkeypatch.setattr(cuda_graph.Recording, "__init__", recording)

"""Memory of a forward pass, measured as resident memory of a process of its own.

`python -m finepruning.bench.memory` loads one model in one runtime, runs it, and prints how far the
process's peak resident set rose above what it held once all libraries were imported. That counts weights,
activations, workspaces and whatever else the runtime keeps, however it allocates them. What loading left
behind is given back to the system first, so that a way of loading is not mistaken for a need.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

OURS = "finepruning"
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class MemoryRequest:
    """One child's work: run ``model`` (a model directory) in ``peer`` for each batch, smallest first."""

    model: str
    peer: str
    batches: tuple[int, ...]
    threads: int
    dtype: str


def available() -> bool:
    """Whether this system can report and reset a process's peak resident set (Linux can)."""
    return _STATUS.exists() and _CLEAR_REFS.exists()


def peak_bytes(requests: Sequence[MemoryRequest]) -> list[dict[int, int] | None]:
    """Peak resident bytes of a forward for each request: batch -> bytes, or None where the child failed.

    Each runs in a process of its own, two at a time (this is no timing).
    """
    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(_ask_child, requests))


def _ask_child(request: MemoryRequest) -> dict[int, int] | None:
    command = [sys.executable, "-m", "finepruning.bench.memory", json.dumps(asdict(request))]
    child = subprocess.run(command, capture_output=True, text=True)
    if child.returncode != 0:
        return None
    answer = json.loads(child.stdout.splitlines()[-1])
    return {int(batch): int(value) for batch, value in answer.items()}


def _resident(field: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (peak since the last reset) of this process, in bytes."""
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{_STATUS} has no {field}")


def _settle() -> None:
    """Give freed memory back to the system and restart the peak from what is resident now."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)
    _CLEAR_REFS.write_text("5", encoding="ascii")


def _measure(request: MemoryRequest) -> dict[int, int]:
    import torch

    from finepruning.bench.peers import PEERS
    from finepruning.bench.twin import dense_twin
    from finepruning.engine import SparseModel
    from finepruning.sparse.storage import load

    peer = None if request.peer == OURS else PEERS[request.peer]
    if peer is not None and peer.package is not None:
        __import__(peer.package)
    torch.set_num_threads(request.threads)
    dtype: torch.dtype = getattr(torch, request.dtype)
    _settle()
    before = _resident("VmRSS")
    result = {}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for batch in sorted(request.batches):
            call: Callable[[torch.Tensor], torch.Tensor]
            if peer is None:
                call = model = SparseModel.from_pretrained(request.model, dtype=dtype)
                x = torch.zeros(batch, *model.input_shape)
                del model
            else:
                stored = load(request.model)
                x = torch.zeros(batch, *stored.graph.input_shape, dtype=dtype)
                twin = dense_twin(stored, x, Path(folder))
                call = peer.prepare(twin, request.threads)
                del stored, twin
            call(x)
            _settle()
            call(x)
            result[batch] = _resident("VmHWM") - before
            del call
    return result


if __name__ == "__main__":
    answer = _measure(MemoryRequest(**json.loads(sys.argv[1])))
    print(json.dumps(answer))

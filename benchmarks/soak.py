"""A million inferences in one process, over several shapes and threads: flat memory, equal outputs.

    python benchmarks/soak.py                     # 1,000,000 calls
    python benchmarks/soak.py --calls 20000 --threads 4

Threads call one model with random batch sizes, more sizes than plans are kept, so that plans are made and
dropped too. Every output must equal, bit for bit, the first one for its input. Resident memory
is read after each part of the calls; after the first tenth (plans, arenas and allocator caches fill) it must
not grow by more than LIMIT_BYTES. Goes to benchmarks/results/soak.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from finepruning.bench.machine import describe
from finepruning.engine import SparseModel
from finepruning.engine.model import MAX_EXECUTORS

RESULTS = Path(__file__).parent / "results" / "soak.json"
USUAL, RARE = (1, 2, 3, 4), (5, 7, 8, 12, 15, 16, 17, 33)
RARE_SHARE = 0.01
SHAPE = (3, 12, 12)
PARTS = 20
LIMIT_BYTES = 4 << 20


def small_model() -> SparseModel:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(16 * 16, 10),
        nn.Softmax(1),  # runs as PyTorch's operation
    ).eval()
    with torch.no_grad():
        for layer in module:
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.weight *= torch.rand_like(layer.weight) < 0.1
    return SparseModel.from_dense(module, torch.zeros(1, *SHAPE))


def resident_bytes() -> int:
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * 4096


def work(
    model: SparseModel,
    inputs: Sequence[Tensor],
    expected: Sequence[Tensor],
    seed: int,
    calls: int,
    wrong: list[int],
) -> None:
    chance = random.Random(seed)
    for _ in range(calls):
        rare = chance.random() < RARE_SHARE
        index = chance.randrange(len(USUAL), len(inputs)) if rare else chance.randrange(len(USUAL))
        if not torch.equal(model(inputs[index]), expected[index]):
            wrong.append(index)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=3, help="Python threads that call the model")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = small_model()
    inputs = [torch.randn(batch, *SHAPE) for batch in (*USUAL, *RARE)]
    assert len(inputs) > MAX_EXECUTORS
    expected = [model(x) for x in inputs]
    wrong: list[int] = []
    memory = [resident_bytes()]
    start = time.perf_counter()
    share = options.calls // (PARTS * options.threads)
    for part in range(PARTS):
        threads = [
            threading.Thread(target=work, args=(model, inputs, expected, part * 1000 + thread, share, wrong))
            for thread in range(options.threads)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        gc.collect()
        memory.append(resident_bytes())
        done = (part + 1) * share * options.threads
        print(f"{done} calls, {memory[-1] / 2**20:.1f} MiB, {len(wrong)} wrong", flush=True)
    growth = memory[-1] - memory[PARTS // 10]
    result = {
        **describe(torch.device("cpu"), 1),
        "calls": PARTS * share * options.threads,
        "threads": options.threads,
        "batches": [*USUAL, *RARE],
        "seconds": round(time.perf_counter() - start, 1),
        "wrong": len(wrong),
        "growth_bytes": growth,
        "resident_mib": [round(value / 2**20, 1) for value in memory],
    }
    if options.calls >= 1_000_000:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['calls']} calls, {len(wrong)} wrong, {growth} bytes more after the first tenth")
    raise SystemExit(bool(wrong) or growth > LIMIT_BYTES)


if __name__ == "__main__":
    main()

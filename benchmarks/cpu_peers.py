"""Pruned networks on the CPU against the dense runtimes: the table, and benchmarks/results/cpu_peers.json.

    python benchmarks/cpu_peers.py [--networks alexnet,vgg16] [--patterns FOLDER] [--deepsparse PYTHON]

FOLDER may hold `resnet50_magnitude_*.npz` (which weights of a ResNet-50 magnitude pruning kept: `NAME|shape`,
`NAME|rowptr`, `NAME|col`, rows = output channels, columns in kh, kw, ic order) and
`caffenet_conv_skimcaffe.npz` (pruned CaffeNet convolutions with values, OIHW), measured layer by layer.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from finepruning import SparseModel, models
from finepruning.bench import BenchOptions, bench
from finepruning.bench.networks import prune_random
from finepruning.bench.peers import PEERS, Call, Peer
from finepruning.bench.tables import show_bench
from finepruning.bench.twin import DenseTwin
from finepruning.pruning import prunable_layers

NETWORKS = ("alexnet", "vgg16", "resnet50")
DENSITIES = (0.10, 0.05)
BATCHES = (1, 16)
RESULTS = Path(__file__).parent / "results" / "cpu_peers.json"
# Input side, padding and groups of CaffeNet's convolutions, which the file of weights does not tell.
CAFFENET = {"conv1": (227, 4, 0, 1), "conv2": (27, 1, 2, 2), "conv3": (13, 1, 1, 1)} | dict.fromkeys(
    ("conv4", "conv5"), (13, 1, 1, 2)
)


def cases(arguments: argparse.Namespace) -> Iterator[tuple[str, Callable[[], SparseModel]]]:
    """(name of the case, what makes its model)."""
    for network in arguments.networks.split(","):
        for density in DENSITIES:
            yield f"{network}-{density:g}", lambda n=network, d=density: prune_random(n, d)  # type: ignore[misc]
    if arguments.patterns is None:
        return
    for file in sorted(arguments.patterns.glob("resnet50_magnitude_*.npz")):
        yield f"resnet50-pattern-{1 - float(file.stem.rpartition('_')[2]):.2g}", lambda f=file: patterned(f)  # type: ignore[misc]
    caffenet = arguments.patterns / "caffenet_conv_skimcaffe.npz"
    if caffenet.exists():
        with np.load(caffenet) as content:
            weights = {name: content[name] for name in content.files}
        for name, weight in sorted(weights.items()):
            key = next((k for k in CAFFENET if k in name.lower()), None)
            if key is not None and weight.ndim == 4:
                yield f"caffenet-{key}", lambda k=key, w=weight: single_layer(k, w)  # type: ignore[misc]


def patterned(file: Path) -> SparseModel:
    """torchvision's ResNet-50 with normal weights where the file's matrices hold an entry, zeros elsewhere.

    Matrices are matched to layers by shape, in the order in which both list them.
    """
    network = models.create("resnet50", 1000, "none", 0)
    with np.load(file) as content:
        names = [key.removesuffix("|shape") for key in content.files if key.endswith("|shape")]
        matrices = {
            name: (tuple(content[f"{name}|shape"]), content[f"{name}|rowptr"], content[f"{name}|col"])
            for name in names
        }
    unused = list(matrices)
    generator = torch.Generator().manual_seed(0)
    for layer, weight in prunable_layers(network.module).items():
        rows, columns = weight.shape[0], weight[0].numel()
        match = next((name for name in unused if matrices[name][0] == (rows, columns)), None)
        if match is None:
            raise SystemExit(f"{file}: no matrix of shape {rows}x{columns} for {layer}")
        unused.remove(match)
        _, rowptr, col = matrices[match]
        keep = torch.zeros(rows, columns, dtype=torch.bool)
        row = torch.repeat_interleave(torch.arange(rows), torch.from_numpy(np.diff(rowptr).astype(np.int64)))
        keep[row, torch.from_numpy(col.astype(np.int64))] = True
        if weight.dim() == 4:  # columns run over kh, kw, ic
            kh, kw = weight.shape[2:]
            keep = keep.reshape(rows, kh, kw, weight.shape[1]).permute(0, 3, 1, 2)
        values = torch.randn(weight.shape, generator=generator) * math.sqrt(2 / columns)
        weight.data = values * keep.reshape(weight.shape)
    return SparseModel.from_dense(network.module.eval(), torch.zeros(1, 3, 224, 224))


def single_layer(name: str, weight: np.ndarray[Any, np.dtype[np.float32]]) -> SparseModel:
    """One convolution of CaffeNet by itself, followed by its ReLU."""
    size, stride, padding, groups = CAFFENET[name]
    oc, ic, kh, kw = weight.shape
    layer = nn.Conv2d(ic * groups, oc, (kh, kw), stride, padding, groups=groups)
    layer.weight.data = torch.from_numpy(weight)
    return SparseModel.from_dense(
        nn.Sequential(layer, nn.ReLU()).eval(), torch.zeros(1, ic * groups, size, size)
    )


class DeepSparse:
    """A sparse runtime in an environment of its own; `deepsparse_worker.py` is the other end of the pipe.

    A call's time includes a round trip through the pipe, about 0.05 ms.
    """

    def __init__(self, python: Path) -> None:
        self._python = python
        self._worker: subprocess.Popen[str] | None = None

    def close(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker.wait()
        self._worker = None

    def prepare(self, twin: DenseTwin, threads: int) -> Call:
        """Start a worker for the twin's batch; the one before it ends."""
        self.close()
        given, result = twin.folder / "input.npy", twin.folder / "output.npy"
        np.save(given, twin.example.numpy())
        script = Path(__file__).with_name("deepsparse_worker.py")
        self._worker = worker = subprocess.Popen(
            [str(self._python), str(script), str(twin.onnx()), str(given), str(result), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "NM_DISABLE_ANALYTICS": "1"},
        )
        assert worker.stdin is not None
        assert worker.stdout is not None
        write, read = worker.stdin, worker.stdout
        while (line := read.readline()) != "ready\n":
            if not line:
                raise SystemExit("deepsparse_worker.py ended; its message stands above")
        output = torch.from_numpy(np.load(result))

        def call(x: Tensor) -> Tensor:
            write.write("run\n")
            write.flush()
            if read.readline() != "done\n":
                raise SystemExit("deepsparse_worker.py ended; its message stands above")
            return output

        return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--networks", default=",".join(NETWORKS), help="torchvision classifiers, by commas")
    parser.add_argument("--patterns", type=Path, help="folder with real sparsity patterns")
    parser.add_argument("--deepsparse", type=Path, help="interpreter of an environment with DeepSparse")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--seconds", type=float, default=2.0, help="timed seconds wanted a row")
    parser.add_argument("--compile", action="store_true", help="also torch.compile")
    parser.add_argument("--memory", action="store_true", help="also peak memory")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    names = (
        "torch",
        "torch_channels_last",
        *(["torch_compile"] * arguments.compile),
        "onnxruntime",
        "openvino",
        *(["deepsparse"] * (arguments.deepsparse is not None)),
    )
    deepsparse = DeepSparse(arguments.deepsparse or Path("python"))
    PEERS["deepsparse"] = Peer("deepsparse", deepsparse.prepare, None, ("cpu",), (torch.float32,), True, True)
    options = BenchOptions(
        batches=BATCHES,
        threads=arguments.threads,
        peers=names,
        memory=arguments.memory,
        seconds=arguments.seconds,
    )
    console = Console(highlight=False)
    results: list[dict[str, Any]] = []
    for name, make in cases(arguments):
        with tempfile.TemporaryDirectory() as folder:
            make().save_pretrained(Path(folder) / "model")
            results.append(bench(Path(folder) / "model", name, options))
        show_bench(results[-1], console)
        console.print()
        store(results, arguments.out)
    deepsparse.close()
    uniform = [result for result in results if result["network"].rpartition("-")[0] in NETWORKS]
    for peers, title in (
        (set(names) - {"deepsparse"}, "the best dense runtime"),
        ({"deepsparse"}, "DeepSparse"),
    ):
        ratios = [ratio for result in uniform for ratio in speedups(result, peers)]
        if ratios:
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            console.print(
                f"against {title}: geometric mean {mean:.2f}x over {len(ratios)} rows, "
                f"lowest {min(ratios):.2f}x"
            )
    console.print(f"stored in {arguments.out}")


def speedups(result: dict[str, Any], peers: set[str]) -> list[float]:
    """Time of the fastest of ``peers`` over ours, for every batch measured."""
    ratios = []
    for batch in BATCHES:
        times = {row["peer"]: row["median_ms"] for row in result["rows"] if row["batch"] == batch}
        others = [times[peer] for peer in peers if times.get(peer) is not None]
        if others:
            ratios.append(min(others) / times["finepruning"])
    return ratios


def store(results: list[dict[str, Any]], path: Path) -> None:
    """All rows so far, with the machine and the limits of the run each belongs to."""
    head = {key: results[0][key] for key in ("commit", "machine", "versions")}
    rows = [
        {**row, "date": result["date"], "limits": result.get("limits")}
        for result in results
        for row in result["rows"]
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"date": results[0]["date"], **head, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

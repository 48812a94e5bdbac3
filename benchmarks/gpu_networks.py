"""The networks and layers of `gpu.py`: made once, thinned to each density, every contender prepared."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finepruning import models
from finepruning.bench import cuda, cuda_linear
from finepruning.bench.networks import prune_uniform
from finepruning.bench.peers import PEERS
from finepruning.bench.twin import DenseTwin, PlanModule
from finepruning.engine.capture import capture
from finepruning.engine.cuda import CudaExecutor
from finepruning.engine.fuse import fuse
from finepruning.engine.plan import Plan
from finepruning.sparse.csr import CSR

DEVICE = torch.device("cuda", 0)
DTYPES = {"float16": torch.float16, "float32": torch.float32}
# Timed seconds of each contender, hot and cold alike: tens to thousands of replays.
SECONDS = 0.05


def thinner(weight: CSR, density: float) -> CSR:
    """``weight`` with only its largest entries, ``density`` of all, scaled to the norm it had.

    Itself where it has no more entries. Unscaled, the activations of VGG-16 at .02 fall below what float16
    can hold.
    """
    wanted = max(1, round(density * weight.rows * weight.columns))
    if weight.nnz <= wanted:
        return weight
    magnitude = weight.values.float().abs()
    keep = torch.zeros(weight.nnz, dtype=torch.bool)
    keep[magnitude.topk(wanted, sorted=False).indices] = True
    kept = torch.cat([torch.zeros(1, dtype=torch.int64), keep.cumsum(0)])
    rowptr = kept[weight.rowptr.to(torch.int64)].to(torch.int32)
    # uint16 has no masked indexing everywhere; a round trip costs little.
    scale = float(weight.values.float().norm() / weight.values[keep].float().norm())
    return CSR(
        weight.values[keep] * scale,
        weight.col.to(torch.int32)[keep].to(weight.col.dtype),
        rowptr,
        weight.shape,
    )


def retyped(weight: CSR, dtype: torch.dtype) -> CSR:
    return CSR(weight.values.to(dtype), weight.col, weight.rowptr, weight.shape)


class Network:
    """One network, captured at ``density`` (half in the first layer); lower ones keep its largest weights."""

    def __init__(self, name: str, density: float) -> None:
        network = models.create(name, 1000, "none", 0)
        with torch.no_grad():
            # Magnitudes are ranked on the GPU: the largest layer of VGG-16 has 103 million.
            prune_uniform(network.module.to(DEVICE), density)
        self.shape = (3, network.image_size, network.image_size)
        self._graph, self._tensors = capture(network.module.to("cpu").eval(), self.shape)
        self._first = next(node.weight for node in self._graph.nodes if node.op in ("conv2d", "linear"))
        self._thin: dict[tuple[float, torch.dtype], dict[str, Any]] = {}

    def plan(self, density: float, batch: int, dtype: torch.dtype) -> Plan:
        """Its plan at ``density`` with values of ``dtype``."""
        if (density, dtype) not in self._thin:
            self._thin[density, dtype] = {
                key: tensor
                if not isinstance(tensor, CSR)
                else retyped(tensor if key == self._first else thinner(tensor, density), dtype)
                for key, tensor in self._tensors.items()
            }
        return fuse(self._graph, self._thin[density, dtype], batch, dtype)

    def dense(self, density: float, batch: int) -> PlanModule:
        """The network with its zeros stored, float32 on the GPU."""
        plan = self.plan(density, batch, torch.float32)
        steps = tuple(
            replace(step, weight=on_device(step.weight)) if isinstance(step.weight, CSR) else step
            for step in plan.steps
        )
        return PlanModule(replace(plan, steps=steps)).eval().to(DEVICE)


class Networks(dict[str, Network]):
    """Networks by name, each made when first asked for, at the density given then."""

    def get_or_make(self, name: str, density: float) -> Network:
        if name not in self:
            self[name] = Network(name, density)
        return self[name]


def on_device(weight: CSR) -> Tensor:
    """The dense weight, made on the GPU from what is stored."""
    counts = weight.rowptr.to(torch.int64).diff().to(DEVICE)
    row = torch.repeat_interleave(torch.arange(weight.rows, device=DEVICE), counts)
    dense = torch.zeros(weight.rows, weight.columns, dtype=weight.values.dtype, device=DEVICE)
    dense[row, weight.col.to(torch.int64).to(DEVICE)] = weight.values.to(DEVICE)
    return dense.reshape(weight.shape)


def network_rows(networks: Networks, job: Any) -> list[dict[str, Any]]:
    """All rows of a job on a whole network."""
    network = networks.get_or_make(job.network, job.densities[0])
    dtype, tf32 = DTYPES[job.dtype], job.precision == "tf32"
    suffix = "_tf32" if tf32 else ""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(job.batch, *network.shape, generator=generator).to(DEVICE, dtype)
    common = {"network": job.network, "batch": job.batch, "dtype": job.dtype}
    contenders = []

    def ours(density: float) -> cuda.Prepared:
        with cuda.tf32(tf32):
            return cuda.ours(CudaExecutor(network.plan(density, job.batch, dtype), DEVICE), x)

    def theirs(name: str) -> cuda.Prepared:
        with cuda.tf32(tf32), tempfile.TemporaryDirectory() as folder:
            module = network.dense(job.densities[0], job.batch).to(dtype)
            twin = DenseTwin(module, x, Path(folder))
            call = PEERS[name].prepare(twin, 1)
            # torch_channels_last copies the module: the first copy must not count as its memory.
            example, size = twin.example, twin.weight_bytes
            del module, twin
            return cuda.record(DEVICE, lambda: call(example), size)

    with torch.no_grad():
        expected = []
        for density in job.densities:
            with cuda.tf32(False):
                expected.append(network.dense(density, job.batch)(x.float()))
        for density, reference in zip(job.densities, expected, strict=True):
            contenders.append(
                cuda.Contender(
                    f"finepruning{suffix}",
                    job.precision,
                    partial(ours, density),
                    reference,
                    {**common, "density": density},
                )
            )
        for name in ("torch", "torch_channels_last", *(["torch_compile"] if job.compiled else [])):
            columns = {**common, "density": job.densities[0]}
            contenders.append(
                cuda.Contender(name + suffix, job.precision, partial(theirs, name), None, columns)
            )
        rows = cuda.measure(contenders, expected[0], DEVICE, seconds=SECONDS)
    cuda.add_speedups(rows)
    return rows


def linear_rows(shape: tuple[int, int], density: float, job: Any) -> list[dict[str, Any]]:
    """All rows of one fully connected layer at one density."""
    out, into = shape
    generator = torch.Generator(DEVICE).manual_seed(2)
    weight = torch.randn(out, into, generator=generator, device=DEVICE)
    weight *= torch.rand(out, into, generator=generator, device=DEVICE) < density
    csr = retyped(CSR.from_dense(weight), DTYPES[job.dtype])
    rows = cuda_linear.linear_rows(csr, job.batch, DTYPES[job.dtype], DEVICE, SECONDS)
    return [{"network": job.network, "density": density, "dtype": job.dtype, **row} for row in rows]

"""Modelled seconds of a layer on a GPU, by each method: what decides where nothing was measured.

Each time is the largest of arithmetic at a share of its peak, bytes at a share of the memory's bandwidth
and, for gathers, bytes at the L2 cache's bandwidth, plus the cost of its launches. The shares are estimates;
`cuda_measure` replaces the result by measurements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from finepruning.engine.cuda_choice import Layer


@dataclass(frozen=True)
class Gpu:
    """Limits of a device: published figures per second, and two costs that no data sheet gives.

    Attributes:
        bandwidth: bytes/s of memory; l2_bandwidth: bytes/s of the L2 cache; l2_bytes: its size.
        fp32, tf32, half: multiply-adds/s of the CUDA cores and of the tensor cores by input type.
        processors: streaming multiprocessors. launch: seconds from one kernel of a CUDA graph to the next.
    """

    name: str
    bandwidth: float
    l2_bandwidth: float
    l2_bytes: int
    fp32: float
    tf32: float
    half: float
    processors: int
    launch: float = 2e-6

    @classmethod
    def of(cls, device: torch.device) -> Gpu:
        """The limits of a CUDA device; an H200's for any other (where plans are only tested)."""
        if device.type != "cuda":
            return H200
        properties = torch.cuda.get_device_properties(device)
        for gpu in _KNOWN:
            if gpu.name in properties.name:
                return gpu
        # Unknown: the H200's rates per processor, and the memory's own figures (kHz, bits, two transfers
        # a clock). Only ratios between kernels matter.
        share = properties.multi_processor_count / H200.processors
        clock, width = (getattr(properties, name, 0) for name in ("memory_clock_rate", "memory_bus_width"))
        return cls(
            properties.name,
            2e3 * clock * width / 8 or H200.bandwidth * share / 2,
            H200.l2_bandwidth * share,
            int(getattr(properties, "L2_cache_size", H200.l2_bytes)),
            H200.fp32 * share,
            H200.tf32 * share,
            H200.half * share,
            properties.multi_processor_count,
        )


# Data sheets; L2 bandwidth as microbenchmarks report it.
H200 = Gpu("H200", 4.8e12, 5.5e12, 60 << 20, 33.5e12, 247e12, 495e12, 132)
H100 = Gpu("H100", 3.35e12, 5.5e12, 50 << 20, 33.5e12, 247e12, 495e12, 132)
A100 = Gpu("A100", 1.9e12, 4.0e12, 40 << 20, 9.75e12, 78e12, 156e12, 108)
_KNOWN = (H200, H100, A100)

# Share of the peak that a kernel reaches on large layers.
DENSE_EFFICIENCY = 0.6
BANDWIDTH_EFFICIENCY = 0.8
# A direct sparse convolution issues one load per 16 bytes of input and, for 16-bit maps, one conversion
# per multiply-add: a sixth of the FMA rate when runs are 16 bytes, a twentieth when they are single values.
SPARSE_EFFICIENCY = 1 / 6
SPARSE_SCALAR_EFFICIENCY = 1 / 20
# Share of gathered bytes that miss L1: programs of neighbouring rows read the same input in step.
GATHER_MISSES = 0.35


def seconds(layer: Layer, gpu: Gpu) -> dict[str, float]:
    """Modelled time of each method that can run the layer."""
    dense = _dense_seconds(layer, gpu)
    bandwidth = gpu.bandwidth * BANDWIDTH_EFFICIENCY
    # The scratch is written twice (zeros, then entries) and stays in L2 when it fits.
    scratch_rate = gpu.l2_bandwidth * BANDWIDTH_EFFICIENCY
    expand = gpu.launch + layer.sparse_bytes / bandwidth + 2 * layer.dense_bytes / scratch_rate
    result = {"dense": dense, "expand": dense + expand}
    if layer.direct:
        result["sparse"] = _sparse_seconds(layer, gpu)
    return result


def _traffic(layer: Layer) -> int:
    return (layer.inputs + layer.rows * layer.outputs * layer.batch) * layer.itemsize


def _dense_seconds(layer: Layer, gpu: Gpu) -> float:
    positions = layer.outputs * layer.batch
    peak = gpu.half if layer.itemsize == 2 else gpu.tf32 if layer.tf32 else gpu.fp32
    # Tiles of 128 x 128 outputs, the sums of each split over up to four processors.
    tiles = math.ceil(positions / 128) * math.ceil(layer.rows / 128) * 4
    busy = min(1.0, tiles / gpu.processors)
    compute = layer.rows * layer.columns * positions / (peak * DENSE_EFFICIENCY * busy)
    memory = (layer.dense_bytes + _traffic(layer)) / (gpu.bandwidth * BANDWIDTH_EFFICIENCY)
    # A convolution is followed by one kernel for bias, residual and activation.
    return max(compute, memory) + gpu.launch * (2 if layer.convolution else 1)


def _sparse_seconds(layer: Layer, gpu: Gpu) -> float:
    work = layer.nnz * layer.outputs * layer.batch
    efficiency = SPARSE_EFFICIENCY if layer.batch * layer.itemsize >= 16 else SPARSE_SCALAR_EFFICIENCY
    busy = min(1.0, layer.rows * math.ceil(layer.outputs * layer.batch / 64) / (4 * gpu.processors))
    compute = work / (gpu.fp32 * efficiency * busy)
    # Each gathered run moves at least one sector of 32 bytes, shared by neighbouring outputs.
    run = max(min(layer.outputs * layer.batch, 512) * layer.itemsize, 32)
    gathered = layer.nnz * math.ceil(layer.outputs * layer.batch * layer.itemsize / run) * run * GATHER_MISSES
    if layer.outputs * layer.batch == 1:
        gathered = 0.0  # one input vector stays in L1
    memory = (layer.sparse_bytes + _traffic(layer)) / (gpu.bandwidth * BANDWIDTH_EFFICIENCY)
    return max(compute, gathered / gpu.l2_bandwidth, memory) + gpu.launch

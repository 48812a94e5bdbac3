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
from finepruning.kernels import conv2d_tile


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
# First-level cache of a processor, less some for shared memory.
L1_BYTES = 192 << 10
# The fully connected kernels take about 5 instructions a multiply-add for several images and 10 to 17 for
# one, by count of the compiled loop; the convolution's are counted in `finepruning.kernels.conv2d_tile`.
SPMM_EFFICIENCY = 1 / 6
SPMV_EFFICIENCY = 1 / 20
# Share of the issue slots that a direct convolution fills.
CONVOLUTION_EFFICIENCY = 0.7
# Share of bytes gathered by fully connected layers that miss L1: neighbouring rows run in step.
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
    memory = (layer.sparse_bytes + _traffic(layer)) / (gpu.bandwidth * BANDWIDTH_EFFICIENCY)
    compute, gathered = (_convolution if layer.convolution else _product)(layer, gpu)
    return max(compute, gathered / gpu.l2_bandwidth, memory) + gpu.launch


def _product(layer: Layer, gpu: Gpu) -> tuple[float, float]:
    """Seconds of arithmetic, and bytes read from the L2 cache, of a sparse fully connected layer."""
    positions = layer.outputs * layer.batch
    efficiency = SPMV_EFFICIENCY if positions == 1 else SPMM_EFFICIENCY
    busy = min(1.0, layer.rows * math.ceil(positions / 64) / (4 * gpu.processors))
    compute = layer.nnz * positions / (gpu.fp32 * efficiency * busy)
    # Each gathered run moves at least one sector of 32 bytes; one input vector stays in L1.
    run = max(min(positions, 512) * layer.itemsize, 32)
    gathered = layer.nnz * math.ceil(positions * layer.itemsize / run) * run * GATHER_MISSES
    return compute, gathered if positions > 1 else 0.0


def _convolution(layer: Layer, gpu: Gpu) -> tuple[float, float]:
    """Likewise of a direct sparse convolution, from the tile that its kernel would take."""
    positions = layer.outputs * layer.batch
    run = conv2d_tile.LANES * min(layer.batch & -layer.batch, 16 // layer.itemsize)
    shape = (layer.rows, layer.nnz, positions)
    tile = conv2d_tile.tile_shape(*shape, run, layer.itemsize)
    rate = gpu.fp32 / (conv2d_tile.LANES * conv2d_tile.ISSUE * gpu.processors)  # clocks/s
    clocks = conv2d_tile.clocks(tile, *shape, layer.itemsize) * conv2d_tile.PROCESSORS / gpu.processors
    # The taps of a channel and the rows of a program read the same bytes of a map, as far as they have
    # weights there. No processor reads more than the whole input, while that fits its first-level cache.
    uses = max(1.0, tile.rows * layer.taps * layer.nnz / (layer.rows * layer.columns))
    gathered = layer.nnz * positions * layer.itemsize / uses
    whole = layer.inputs * layer.itemsize
    if whole <= L1_BYTES:
        gathered = min(gathered, whole * gpu.processors)
    return clocks / (rate * CONVOLUTION_EFFICIENCY), gathered

"""Which kernel runs each layer on a GPU: a roofline model of three ways to run it, and one rule.

A layer can run *sparse* (its stored weights only, on the CUDA cores), *expand* (dense weights made just
in time in a shared scratch, then cuDNN or cuBLAS) or *dense* (dense weights kept in memory). The rule:
every layer takes the faster of the two that keep its weights sparse; if the network as a whole would
then be slower than the dense network, layers keep dense weights, the best trade of time for bytes first,
until it is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from finepruning.engine.plan import Plan, Step
from finepruning.sparse.csr import CSR

Method = Literal["sparse", "expand", "dense"]


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
        # Unknown: the H200's per-processor rates, scaled. Only ratios between kernels matter.
        share = properties.multi_processor_count / H200.processors
        return cls(
            properties.name,
            H200.bandwidth * share / 2,
            H200.l2_bandwidth * share,
            int(getattr(properties, "L2_cache_size", H200.l2_bytes)),
            H200.fp32 * share,
            H200.tf32 * share,
            H200.half * share,
            properties.multi_processor_count,
        )


# Data sheets; L2 bandwidth as microbenchmarks report it.
H200 = Gpu("H200", 4.8e12, 5.5e12, 50 << 20, 33.5e12, 247e12, 495e12, 132)
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
# A layer with more of its weights than this has nothing to skip: sparse storage would be larger.
MAX_DENSITY = 0.45


@dataclass(frozen=True)
class Layer:
    """What the model needs to know of a convolution or fully connected step."""

    name: str
    convolution: bool
    rows: int
    columns: int
    nnz: int
    outputs: int  # output pixels (times other leading dimensions) of one image
    batch: int
    inputs: int  # elements of the input, batch included
    itemsize: int
    tf32: bool
    direct: bool  # a sparse kernel can run it

    @property
    def dense_bytes(self) -> int:
        return self.rows * self.columns * self.itemsize

    @property
    def sparse_bytes(self) -> int:
        return self.nnz * (self.itemsize + (2 if self.columns <= 65536 else 4)) + 5 * self.rows


@dataclass(frozen=True)
class Choice:
    """The method of one layer and the modelled seconds of each."""

    method: Method
    seconds: Mapping[str, float]
    why_dense: str | None = None


def layers(plan: Plan, *, tf32: bool) -> list[Layer]:
    """The steps of ``plan`` with CSR weights. ``tf32``: float32 tensor cores are allowed for convolutions."""
    return [_layer(plan, step, tf32) for step in plan.steps if isinstance(step.weight, CSR)]


def _layer(plan: Plan, step: Step, tf32: bool) -> Layer:
    csr = step.weight
    assert isinstance(csr, CSR)
    source, result = plan.values[step.inputs[0]], plan.values[step.output]
    batch = result.shape[0]
    inputs = math.prod(source.shape)
    convolution = step.op == "conv2d"
    return Layer(
        name=step.name,
        convolution=convolution,
        rows=csr.rows,
        columns=csr.columns,
        nnz=csr.nnz,
        outputs=math.prod(result.shape[2:] if convolution else result.shape[1:-1]),
        batch=batch,
        inputs=inputs,
        itemsize=result.dtype.itemsize,
        tf32=tf32 and convolution,
        # Offsets inside the kernels are 32-bit; a border may double a small map.
        direct=len(result.shape) == (4 if convolution else 2)
        and 2 * max(inputs, math.prod(result.shape)) < 2**31,
    )


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


def choose(candidates: Sequence[Layer], times: Mapping[str, Mapping[str, float]]) -> dict[str, Choice]:
    """Apply the rule of this module.

    Args:
        candidates: the layers of one network.
        times: layer name -> method -> seconds, modelled or measured; "dense" is always there.
    """
    picked: dict[str, Method] = {}
    for layer in candidates:
        if layer.nnz > MAX_DENSITY * layer.rows * layer.columns:
            picked[layer.name] = "dense"
        else:
            picked[layer.name] = _best(times[layer.name])
    dense_total = sum(times[layer.name]["dense"] for layer in candidates)
    total = sum(times[name][method] for name, method in picked.items())
    gains = sorted(
        (layer for layer in candidates if times[layer.name][picked[layer.name]] > times[layer.name]["dense"]),
        key=lambda layer: (
            -(times[layer.name][picked[layer.name]] - times[layer.name]["dense"]) / max(layer.dense_bytes, 1)
        ),
    )
    for layer in gains:
        if total <= dense_total:
            break
        total -= times[layer.name][picked[layer.name]] - times[layer.name]["dense"]
        picked[layer.name] = "dense"
    return {
        layer.name: Choice(picked[layer.name], times[layer.name], _reason(layer, picked[layer.name], times))
        for layer in candidates
    }


def _best(times: Mapping[str, float]) -> Method:
    if "sparse" in times and times["sparse"] <= times["expand"]:
        return "sparse"
    return "expand"


def _reason(layer: Layer, method: Method, times: Mapping[str, Mapping[str, float]]) -> str | None:
    if method == "sparse":
        return None
    if method == "dense" and layer.nnz > MAX_DENSITY * layer.rows * layer.columns:
        return f"density {layer.nnz / (layer.rows * layer.columns):.2f}: too few zeros to skip"
    sparse = times[layer.name].get("sparse")
    if sparse is None:
        return "no sparse kernel for this shape"
    return f"sparse would take {sparse * 1e6:.0f} us, {method} {times[layer.name][method] * 1e6:.0f} us"

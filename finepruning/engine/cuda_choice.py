"""Which kernel runs each layer on a GPU: three ways to run it, and one rule.

A layer can run *sparse* (its stored weights only, on the CUDA cores), *expand* (dense weights made just
in time in a shared scratch, then cuDNN or cuBLAS) or *dense* (dense weights kept in memory). The rule:
every layer takes the faster of the two that keep its weights sparse; if the network as a whole would
then be slower than the dense network by more than `SLACK`, layers keep dense weights, the best trade of
time for bytes first, until it is not. Seconds are measured (`cuda_measure`) or modelled (`cuda_roofline`).
A convolution on tensor cores is cuDNN's, followed by a launch for bias, residual and activation, or our own
with all of them fused, whichever measures faster.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from finepruning.engine.plan import Plan, Step
from finepruning.sparse.csr import CSR

Method = Literal["sparse", "expand", "dense"]
METHODS: tuple[Method, ...] = ("sparse", "expand", "dense")

# A layer with more of its weights than this has nothing to skip: sparse storage would be larger.
MAX_DENSITY = 0.45
# Share of the dense network's time that may be given for keeping weights sparse: less than timing's noise.
SLACK = 0.015


@dataclass(frozen=True)
class Layer:
    """What decides how fast a convolution or fully connected step runs.

    Attributes:
        outputs: output pixels (times other leading dimensions) of one image.
        inputs: elements of the input, batch included.
        taps: positions of a convolution's kernel.
        tf32: float32 tensor cores are allowed for it. direct: a sparse kernel can run it.
        fusible: our convolution on tensor cores can run it.
        signature: all that its dense time depends on, as text: operation, shapes, geometry, types.
    """

    name: str
    convolution: bool
    rows: int
    columns: int
    nnz: int
    outputs: int
    batch: int
    inputs: int
    itemsize: int
    tf32: bool
    direct: bool
    signature: str = ""
    taps: int = 1
    fusible: bool = False

    @property
    def dense_bytes(self) -> int:
        return self.rows * self.columns * self.itemsize

    @property
    def sparse_bytes(self) -> int:
        return self.nnz * (self.itemsize + (2 if self.columns <= 65536 else 4)) + 5 * self.rows


@dataclass(frozen=True)
class Choice:
    """The method of one layer and the seconds of each.

    ``fused``: where dense weights are multiplied, our convolution does it instead of cuDNN's.
    """

    method: Method
    seconds: Mapping[str, float]
    why_dense: str | None = None
    fused: bool = False


def layers(plan: Plan, *, tf32_convolution: bool = False, tf32_product: bool = False) -> list[Layer]:
    """The steps of ``plan`` with CSR weights.

    Args:
        tf32_convolution, tf32_product: whether float32 convolutions and fully connected layers that run
            dense may use TF32 tensor cores.
    """
    return [
        _layer(plan, step, tf32_convolution if step.op == "conv2d" else tf32_product)
        for step in plan.steps
        if isinstance(step.weight, CSR)
    ]


def _layer(plan: Plan, step: Step, tf32: bool) -> Layer:
    csr = step.weight
    assert isinstance(csr, CSR)
    source, result = plan.values[step.inputs[0]], plan.values[step.output]
    batch = result.shape[0]
    inputs = math.prod(source.shape)
    convolution = step.op == "conv2d"
    tf32 = tf32 and result.dtype.itemsize == 4
    geometry = [f"{key}{step.attrs[key]}" for key in sorted(step.attrs)]
    finish = f"bias{int(step.bias is not None)} {step.activation}"
    kind = f"{str(result.dtype).removeprefix('torch.')}{' tf32' if tf32 else ''}"
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
        taps=math.prod(csr.shape[2:]),
        tf32=tf32,
        # Offsets of the fully connected kernels are 32-bit; the convolution's are as wide as needed.
        direct=len(result.shape) == 4
        if convolution
        else len(result.shape) == 2 and max(inputs, math.prod(result.shape)) < 2**31,
        fusible=convolution
        and step.attrs["groups"] == 1
        and len(result.shape) == 4
        and (result.dtype.itemsize == 2 or tf32)
        # Its offsets have 32 bits; borders, on which nothing is decided yet, at most double a map here.
        and 2 * max(inputs, math.prod(result.shape)) < 2**31,
        signature=" ".join((step.op, str(source.shape), str(csr.shape), *geometry, finish, kind)),
    )


def choose(
    candidates: Sequence[Layer], times: Mapping[str, Mapping[str, float]], spare: float = 0.0
) -> dict[str, Choice]:
    """Apply the rule of this module.

    Args:
        candidates: the layers of one network.
        times: layer name -> method -> seconds; "dense" and "expand" are always there. "library" is there
            where "dense" is not how the dense network runs the layer.
        spare: seconds by which the network must beat the dense one, for costs that no layer shows.
    """
    picked: dict[str, Method] = {}
    for layer in candidates:
        if layer.nnz > MAX_DENSITY * layer.rows * layer.columns:
            picked[layer.name] = "dense"
        else:
            picked[layer.name] = _best(times[layer.name])
    dense_total = sum(times[layer.name].get("library", times[layer.name]["dense"]) for layer in candidates)
    total = sum(times[name][method] for name, method in picked.items())

    def loss(layer: Layer) -> float:
        return times[layer.name][picked[layer.name]] - times[layer.name]["dense"]

    for layer in sorted(
        (layer for layer in candidates if loss(layer) > 0),
        key=lambda layer: -loss(layer) / max(layer.dense_bytes, 1),
    ):
        if total <= dense_total * (1 + SLACK) - spare:
            break
        total -= loss(layer)
        picked[layer.name] = "dense"
    return {
        layer.name: Choice(
            picked[layer.name],
            times[layer.name],
            _reason(layer, picked[layer.name], times),
            fused=layer.fusible and "library" in times[layer.name],
        )
        for layer in candidates
    }


def all_dense(candidates: Sequence[Layer], chosen: Mapping[str, Choice], reason: str) -> dict[str, Choice]:
    """Every layer with dense weights, for a network that measures slower otherwise."""
    return {
        layer.name: chosen[layer.name]
        if chosen[layer.name].method == "dense"
        else replace(chosen[layer.name], method="dense", why_dense=reason)
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

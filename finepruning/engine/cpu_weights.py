"""Packs weights for the CPU kernels, once per weight, geometry and instruction set."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from finepruning import _core
from finepruning.engine.plan import Plan, Step
from finepruning.sparse.csr import CSR

# Dense weights of so few an output may run on a sparse kernel: dense ones leave much of the machine idle too.
FEW_COLUMNS = 512

_packed: dict[int, tuple[weakref.ref[CSR], weakref.WeakValueDictionary[Any, _core.PackedConv]]] = {}


def csr_arrays(csr: CSR) -> dict[str, Any]:
    """A CSR as arguments of the kernels: columns and row pointers as int32, values as they are stored.

    float16 and bfloat16 go as their bits; they stay 16 bits wide in the packed weights.
    """
    values = csr.values.detach().contiguous()
    return {
        "value": values.numpy() if values.dtype == torch.float32 else values.view(torch.uint16).numpy(),
        "values": str(values.dtype).removeprefix("torch."),
        "column": csr.col.to(torch.int32).contiguous().numpy(),
        "rowptr": csr.rowptr.to(torch.int32).contiguous().numpy(),
    }


def with_dense_weights(plan: Plan, names: Collection[str]) -> Plan:
    """The plan with the weights of the steps so named as dense float32 tensors."""

    def densely(step: Step) -> Step:
        weight = step.weight
        if step.name not in names or not isinstance(weight, CSR):
            return step
        return replace(step, weight=weight.to_dense().float())

    return replace(plan, steps=tuple(densely(step) for step in plan.steps)) if names else plan


def with_sparse_weights(plan: Plan) -> Plan:
    """The plan with the dense weights of convolutions that a sparse kernel may run as CSR."""
    return replace(plan, steps=tuple(_with_sparse_weight(step) for step in plan.steps))


def _with_sparse_weight(step: Step) -> Step:
    weight = step.weight
    if step.op != "conv2d" or not isinstance(weight, Tensor) or weight.dtype != torch.float32:
        return step
    if weight[0].numel() > FEW_COLUMNS or not bool(weight.isfinite().all()):
        return step
    return replace(step, weight=CSR.from_dense(weight))


def geometry(step: Step, shape: Sequence[int]) -> dict[str, Any]:
    """What the kernels need to know of a convolution whose input has ``shape`` [images, channels, h, w]."""
    weight, attrs = step.weight, step.attrs
    assert isinstance(weight, CSR)
    return {
        "channels": shape[1],
        "size": tuple(shape[2:]),
        "outputs": weight.rows,
        "kernel": tuple(weight.shape[2:]),
        "stride": tuple(attrs["stride"]),
        "padding": tuple(attrs["padding"]),
        "dilation": tuple(attrs["dilation"]),
        "groups": attrs["groups"],
    }


def reads_every_nth(geometry: Mapping[str, Any]) -> bool:
    """Whether a convolution reads a part of its input's positions alone, which may be gathered first."""
    pointwise = geometry["kernel"] == (1, 1) and geometry["padding"] == (0, 0)
    return bool(pointwise and geometry["stride"] != (1, 1))


def unstrided(geometry: Mapping[str, Any]) -> dict[str, Any]:
    """The same for a convolution that `reads_every_nth`, on a map of those positions alone."""
    sizes = zip(geometry["size"], geometry["stride"], strict=True)
    return {**geometry, "size": tuple((n - 1) // stride + 1 for n, stride in sizes), "stride": (1, 1)}


def packed_conv(csr: CSR, *, mapping: str, **geometry: Any) -> _core.PackedConv:
    """The packed form of ``csr``; plans of several batch sizes share it.

    Args:
        mapping: "lanes" (images side by side), "planar" (images one by one) or "matrix" (fully connected).
        geometry: the keyword arguments of `_core.PackedConv`.
    """
    identity = id(csr)
    entry = _packed.get(identity)
    if entry is None or entry[0]() is not csr:
        entry = (
            weakref.ref(csr, lambda _: _packed.pop(identity, None)),
            weakref.WeakValueDictionary(),
        )
        _packed[identity] = entry
    key = (mapping, _core.isa(), *sorted(geometry.items()))
    packed = entry[1].get(key)
    if packed is None:
        packed = _core.PackedConv(**csr_arrays(csr), mapping=mapping, **geometry)
        entry[1][key] = packed
    return packed

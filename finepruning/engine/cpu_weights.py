"""Packs weights for the CPU kernels, once per weight, geometry and instruction set."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finepruning import _core
from finepruning.engine.plan import Step
from finepruning.sparse.csr import CSR

_packed: dict[int, tuple[weakref.ref[CSR], weakref.WeakValueDictionary[Any, _core.PackedConv]]] = {}


def csr_arrays(csr: CSR) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.int32]]:
    """Values as float32, columns and row pointers as int32."""
    return (
        csr.values.detach().to(torch.float32).contiguous().numpy(),
        csr.col.to(torch.int32).contiguous().numpy(),
        csr.rowptr.to(torch.int32).contiguous().numpy(),
    )


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


def packed_conv(csr: CSR, *, mapping: str, **geometry: Any) -> _core.PackedConv:
    """The packed form of ``csr``; plans of several batch sizes share it.

    Args:
        mapping: "lanes" (16 images a vector), "planar" (images one by one) or "matrix" (fully connected).
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
        packed = _core.PackedConv(*csr_arrays(csr), mapping=mapping, **geometry)
        entry[1][key] = packed
    return packed

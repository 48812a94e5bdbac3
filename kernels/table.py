"""The table of kernels: what the executor may launch, what tests run and what compile checks build."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from finepruning.kernels import conv2d, dense_conv2d, elementwise, expand, linear, pool


@dataclass(frozen=True)
class Kernel:
    """One kernel.

    Attributes:
        name: as in a plan's report, after "triton ".
        function: the Triton function. launch: checks nothing, launches ``function`` once.
    """

    name: str
    function: Any
    launch: Callable[..., None]


KERNELS = {
    kernel.name: kernel
    for kernel in (
        Kernel("spmv", linear.spmv_kernel, linear.spmv),
        Kernel("spmm", linear.spmm_kernel, linear.spmm),
        Kernel("sparse_conv2d", conv2d.sparse_conv2d_kernel, conv2d.sparse_conv2d),
        Kernel("dense_conv2d", dense_conv2d.dense_conv2d_kernel, dense_conv2d.dense_conv2d),
        Kernel("expand", expand.expand_kernel, expand.expand),
        *(
            Kernel(op, elementwise.elementwise_kernel, functools.partial(elementwise.elementwise, op))
            for op in ("copy", "add", "mul")
        ),
        *(
            Kernel(f"{mode}_pool2d", pool.pool2d_kernel, functools.partial(pool.pool2d, mode))
            for mode in ("max", "avg")
        ),
    )
}


def linear_kernel(batch: int) -> Kernel:
    """The kernel of a sparse fully connected layer for this many images."""
    return KERNELS["spmv" if batch == 1 else "spmm"]

"""Compile kernels for sm_90 without a GPU and print what the tests check, as JSON.

Run in a process of its own: the tests' process has the interpreter switched on.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile

import triton
from finepruning.kernels import conv2d, expand, linear
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

POINTERS = ("x", "values", "col", "ptr", "order", "bias", "residual", "y", "dense")


def compiled(function, value, constants, aligned=()):
    names = function.arg_names
    kinds = dict.fromkeys(POINTERS, f"*{value}") | {"col": "*u16", "ptr": "*i32", "order": "*i32"}
    signature = {name: "constexpr" if name in constants else kinds.get(name, "i32") for name in names}
    attributes = {
        (i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in POINTERS or name in aligned
    }
    values = {(names.index(name),): constant for name, constant in constants.items()}
    kernel = triton.compile(
        ASTSource(function, signature, values, attributes), target=GPUTarget("cuda", 90, 32)
    )
    ptx = kernel.asm["ptx"]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [
            getattr(get_ptxas(90), "path", get_ptxas(90)),
            "-v",
            "--gpu-name=sm_90a",
            file.name,
            "-o",
            "/dev/null",
        ]
        info = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return {
        "loads": sorted(set(re.findall(r"ld\.global[\w.:]*", ptx))),
        "stores": sorted(set(re.findall(r"st\.global[\w.:]*", ptx))),
        "spills": [int(n) for n in re.findall(r"(\d+) bytes spill", info)],
        "registers": int(re.findall(r"Used (\d+) registers", info)[0]),
    }


def main():
    finish = {"HAS_BIAS": True, "HAS_RESIDUAL": True, "ACTIVATION": "relu", "SLICE": 8}
    result = {}
    for value in ("fp16", "fp32"):
        ones = {"stride_x": 1, "stride_r": 1, "stride_y": 1}
        result[f"spmv {value}"] = compiled(
            linear.spmv_kernel, value, {**finish, **ones, "ROWS": 2, "ALIGN": 8, "BLOCK": 512}
        )
        ones = {"stride_xn": 1, "stride_rn": 1, "stride_yn": 1, "stride_xf": 8}
        result[f"spmm {value} batch 8"] = compiled(
            linear.spmm_kernel, value, {**finish, **ones, "BLOCK_K": 256, "BLOCK_N": 8}, ("batch",)
        )
        for batch, weights, outputs in ((1, 16, 128), (8, 4, 512), (64, 4, 512)):
            ones = {"xn": 1, "rn": 1, "yn": 1, "X_UNIT": batch, "Y_UNIT": batch, "R_UNIT": batch, "N": batch}
            result[f"conv {value} batch {batch}"] = compiled(
                conv2d.sparse_conv2d_kernel,
                value,
                {**finish, **ones, "KW": 3, "KHW": 9, "CLEAR": True, "BLOCK_K": weights, "BLOCK_P": outputs},
            )
        result[f"expand {value}"] = compiled(
            expand.expand_kernel,
            value,
            {"KHW": 9, "CHANNELS_LAST": True, "SLICE": 8, "BLOCK": 1024},
            ("columns",),
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""Compile for sm_90, without a GPU, exactly what the kernels' launch functions would launch there.

Triton gets a driver that names an sm_90 target and nothing else, and every launch only compiles: argument
types, alignments and constants are those that the launch function passes for real tensors. Run as a
program (the tests' own process has the interpreter switched on) it prints what the tests check, as JSON;
with arguments NETWORK BATCH DTYPE it does so for every launch of a torchvision network.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from finepruning.kernels import common, conv2d, layout
from finepruning.kernels.conv2d_tile import Tile
from finepruning.kernels.dense_conv2d import tile_of
from finepruning.kernels.sliced_ell import pack
from finepruning.kernels.table import KERNELS
from triton.backends.nvidia.compiler import get_ptxas

from finepruning.bench import cuda_offline
from finepruning.sparse.csr import CSR

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_launched = []


def switch_on():
    def seen(function, kernel, grid):
        assert len(grid) == 1 or max(grid[1:]) < 65536, grid
        assert grid[0] < 2**31, grid
        _launched.append((function.__name__, kernel))

    cuda_offline.switch_on(90, seen)


def launched():
    """(function name, compiled kernel) of every launch since the last call."""
    result = list(_launched)
    _launched.clear()
    return result


# Limits of a processor of an H100 or H200 (compute capability 9.0): CUDA programming guide, table of
# technical specifications. Registers are given to warps in units of 256, shared memory in units of 128.
MAX_WARPS, MAX_PROGRAMS, REGISTERS, SHARED_BYTES, RESERVED_SHARED = 64, 32, 65536, 228 << 10, 1024


def resident_warps(registers, shared, warps):
    """Warps that a processor holds at once of programs with ``warps`` warps each."""
    per_warp = -(-registers * 32 // 256) * 256
    per_program = -(-(shared + RESERVED_SHARED) // 128) * 128
    programs = min(
        MAX_PROGRAMS, MAX_WARPS // warps, REGISTERS // per_warp // warps, SHARED_BYTES // per_program
    )
    return programs * warps


def main_loop(cubin):
    """Machine instructions (names) of the loop with the most multiply-adds; all of them without any."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-c", file.name], capture_output=True, text=True, check=True).stdout
    labels, lines = {}, []
    for line in text.splitlines():
        if label := re.match(r"(\.L_\w+):", line):
            labels[label[1]] = len(lines)
        elif found := re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\S*)(.*);", line):
            lines.append((found[1], found[2]))
    loops = []
    for index, (name, rest) in enumerate(lines):
        target = re.search(r"\.L_\w+", rest) if name.startswith("BRA") else None
        # The branch to itself at the end of every program is no loop.
        if target and labels.get(target[0], len(lines)) < index:
            loops.append([name for name, _ in lines[labels[target[0]] : index + 1]])
    everything = [name for name, _ in lines]
    return max(loops, key=multiply_adds, default=everything)


def multiply_adds(names):
    """Sums that a thread adds to: fused, or (where products are added in pairs) by themselves."""
    fused = sum(name.startswith("FFMA") for name in names)
    return fused + min(
        sum(name.startswith("FMUL") for name in names), sum(name.startswith("FADD") for name in names)
    )


def facts(kernel):
    """Memory accesses in the PTX, what the assembler reports, and the main loop of the machine code."""
    ptx = kernel.asm["ptx"]
    assembler = get_ptxas(90)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        program = getattr(assembler, "path", assembler)
        command = [program, "-v", "--gpu-name=sm_90a", file.name, "-o", "/dev/null"]
        info = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = int(re.findall(r"Used (\d+) registers", info)[0])
    loop = main_loop(kernel.asm["cubin"])
    return {
        "loads": sorted(set(re.findall(r"ld\.global[\w.:]*", ptx))),
        "stores": sorted(set(re.findall(r"st\.global[\w.:]*", ptx))),
        # 16 bytes a thread and copy: what all turns under way put into shared memory.
        "copied_bytes": 512 * kernel.metadata.num_warps * len(re.findall(r"cp\.async\.c[ag].*?, 0x10", ptx)),
        "waits": len(re.findall(r"griddepcontrol\.wait", ptx)),
        "begins_next": "griddepcontrol.launch_dependents" in ptx,
        "written_before_waiting": "st.global" in ptx.partition("griddepcontrol.wait")[0],
        "tensor_cores": bool(re.search(r"\b(wgmma|mma)\.", ptx)),
        "float64": ".f64" in ptx,
        "spilled_bytes": sum(int(n) for n in re.findall(r"(\d+) bytes spill", info)),
        "registers": registers,
        "shared_bytes": kernel.metadata.shared,
        "warps": resident_warps(registers, kernel.metadata.shared, kernel.metadata.num_warps),
        "loop_loads": sum(name.startswith("LDG") for name in loop),
        "loop_instructions": len(loop),
        "loop_multiply_adds": multiply_adds(loop),
    }


def weight(rows, columns, density, dtype, **options):
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(rows, columns, generator=generator)
    csr = CSR.from_dense(dense * (torch.rand(rows, columns, generator=generator) < density))
    return pack(csr.values, csr.col, csr.rowptr, columns, dtype=dtype, **options)


def empty(*shape, dtype, halo=0):
    return layout.empty(shape, halo, dtype=dtype)


def launches(dtype):
    """name of the kernel (and what is special) -> launch at the shapes of real networks."""
    fc = weight(16, 9216, 0.1, dtype, alignment=8)
    conv = weight(16, 256 * 9, 0.1, dtype)
    bias = torch.empty(16, dtype=dtype)
    result = {}

    def linear(batch, weight=fc):
        x, y = empty(batch, weight.columns, dtype=dtype), empty(batch, weight.rows, dtype=dtype)
        KERNELS["spmv" if batch == 1 else "spmm"].launch(
            x, weight, y, bias=torch.empty(weight.rows, dtype=dtype), residual=y, activation="relu"
        )

    def convolution(batch, size, limit=common.MAX_OFFSET, conv=conv, tile=None):
        x = empty(batch, 256, size, size, dtype=dtype, halo=1)
        y = empty(batch, conv.rows, size, size, dtype=dtype, halo=1)
        before, common.MAX_OFFSET = common.MAX_OFFSET, limit
        rule = conv2d.tile_shape
        if tile is not None:
            conv2d.tile_shape = lambda *_: tile
        KERNELS["sparse_conv2d"].launch(
            x, conv, y, kernel=(3, 3), padding=(1, 1), bias=bias, residual=y, activation="relu", halo=1
        )
        common.MAX_OFFSET, conv2d.tile_shape = before, rule

    result["spmv"] = lambda: linear(1)
    result["spmv many rows"] = lambda: linear(1, weight(2112, 4096, 0.1, dtype, alignment=8))
    result["spmm batch 8"] = lambda: linear(8)
    result["spmm batch 64"] = lambda: linear(64)
    result["sparse_conv2d batch 1"] = lambda: convolution(1, 14, conv=weight(256, 256 * 9, 0.1, dtype))
    result["sparse_conv2d batch 1, large map"] = lambda: convolution(1, 112)
    result["sparse_conv2d batch 8"] = lambda: convolution(8, 14)
    result["sparse_conv2d batch 64"] = lambda: convolution(64, 7)
    # Tiles with the fewest instructions a multiply-add; measured slower than those of the rule.
    small, pairs = dtype.itemsize == 2, (256 if dtype.itemsize == 2 else 128)
    result["sparse_conv2d batch 1, 8 runs"] = lambda: convolution(
        1, 14, conv=weight(256, 256 * 9, 0.1, dtype), tile=Tile(8, 32, 1, 8, 4)
    )
    result["sparse_conv2d batch 1, 16 runs"] = lambda: convolution(
        1, 112, tile=Tile(16, 32, 1, 2 if small else 4, 1 if small else 2)
    )
    result["sparse_conv2d batch 8, 2 shares a warp"] = lambda: convolution(
        8, 14, tile=Tile(1 if small else 2, pairs, 1, 16, 8)
    )
    result["sparse_conv2d batch 64, 2 shares a warp"] = lambda: convolution(
        64, 7, tile=Tile(2 if small else 4, pairs, 1, 16, 8)
    )
    result["sparse_conv2d batch 64, 64-bit offsets"] = lambda: convolution(64, 7, 0)

    def dense(batch, size, rows=256):
        x = torch.empty(batch, 256, size, size, dtype=dtype).contiguous(memory_format=torch.channels_last)
        y = torch.empty(batch, rows, size, size, dtype=dtype).contiguous(memory_format=torch.channels_last)
        matrix = torch.empty(rows, 256 * 9, dtype=dtype)
        tile = tile_of(x, matrix, y)
        partial, arrived = torch.empty(max(tile.partial, 1)), torch.zeros(tile.tiles, dtype=torch.int32)
        KERNELS["dense_conv2d"].launch(x, matrix, y, partial, arrived, kernel=(3, 3), padding=(1, 1))

    result["dense_conv2d batch 1"] = lambda: dense(1, 14)
    result["dense_conv2d batch 1, 28x28"] = lambda: dense(1, 28)
    result["dense_conv2d batch 64"] = lambda: dense(64, 14)
    result["dense_conv2d batch 64, 64 rows"] = lambda: dense(64, 56, 64)
    result["expand convolution"] = lambda: KERNELS["expand"].launch(
        conv, torch.empty(16, 2304, dtype=dtype), kernel=(3, 3), channels_last=True
    )
    result["expand linear"] = lambda: KERNELS["expand"].launch(fc, torch.empty(16, 9216, dtype=dtype))
    a, y = empty(64, 16, 14, 14, dtype=dtype), empty(64, 16, 14, 14, dtype=dtype, halo=1)
    last = torch.empty(64, 16, 14, 14, dtype=dtype).contiguous(memory_format=torch.channels_last)
    result["copy batch 64"] = lambda: KERNELS["copy"].launch(a, y, halo=1)
    result["copy from channels_last"] = lambda: KERNELS["copy"].launch(last, y, halo=1)
    result["add channels_last"] = lambda: KERNELS["add"].launch(
        last, last, b=bias.view(1, -1, 1, 1), residual=last, activation="relu"
    )
    result["mul batch 64"] = lambda: KERNELS["mul"].launch(a, y, b=a, halo=1)
    half = empty(64, 16, 7, 7, dtype=dtype, halo=1)
    pool = {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1), "halo": 1}
    result["max_pool2d batch 64"] = lambda: KERNELS["max_pool2d"].launch(a, half, **pool)
    result["avg_pool2d batch 64"] = lambda: KERNELS["avg_pool2d"].launch(a, half, **pool)
    return result


def network_launches(name, batch, dtype, size=64):
    """Facts about every different kernel that a pruned torchvision network launches; one dictionary each."""
    from finepruning import models
    from finepruning.bench.networks import prune_uniform
    from finepruning.engine import cuda_choice, cuda_program, cuda_roofline
    from finepruning.engine.capture import capture
    from finepruning.engine.fuse import fuse

    network = models.create(name, 10, "none", 0).module
    prune_uniform(network, 0.1)
    graph, tensors = capture(network.eval(), (3, size, size), dtype)
    plan = fuse(graph, tensors, batch, dtype)
    candidates = cuda_choice.layers(plan)
    times = {layer.name: cuda_roofline.seconds(layer, cuda_roofline.H200) for layer in candidates}
    choices = cuda_choice.choose(candidates, times)
    layout = cuda_program.lay_out(plan, choices, "channels_last")
    launched()
    with torch.no_grad():
        cuda_program.Program(plan, choices, layout, torch.device("cpu")).run()
    return {f"{function} {kernel.hash}": facts(kernel) for function, kernel in launched()}


def main():
    switch_on()
    if sys.argv[1:]:
        name, batch, dtype = sys.argv[1:]
        print(json.dumps(network_launches(name, int(batch), DTYPES[dtype])))
        return
    result = {}
    for dtype_name, dtype in DTYPES.items():
        for name, launch in launches(dtype).items():
            launch()
            ((_, kernel),) = launched()
            result[f"{name} {dtype_name}"] = facts(kernel)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

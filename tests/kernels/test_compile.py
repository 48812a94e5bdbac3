"""What the compiler makes, for an H100 or H200, of the very launches that the kernels make; without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from finepruning.kernels.table import KERNELS

DTYPES = ("float32", "float16", "bfloat16")


def offline(*arguments):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("offline.py")
    done = subprocess.run(
        [sys.executable, script, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def kernels():
    return offline()


def test_every_kernel_is_compiled_for_every_type(kernels):
    assert {(name.split()[0], name.split()[-1]) for name in kernels} == {
        (name, dtype) for name in KERNELS for dtype in DTYPES
    }


def test_nothing_spills(kernels):
    assert {name: facts["spilled_bytes"] for name, facts in kernels.items() if facts["spilled_bytes"]} == {}


def test_launches_overlap_and_wait_before_they_write(kernels):
    """Of the border, too, which has a way of its own through the program."""
    assert {
        name for name, facts in kernels.items() if not facts["waits"] or not facts["begins_next"]
    } == set()
    assert {name for name, facts in kernels.items() if facts["written_before_waiting"]} == set()


def test_tensor_cores_read_shared_memory_that_wide_copies_fill_ahead(kernels):
    dense = {name: facts for name, facts in kernels.items() if name.startswith("dense_conv2d")}
    assert {name: f for name, f in dense.items() if f["copied_bytes"] != f["shared_bytes"]} == {}


def _starved(facts):
    """Whether a processor holds too few loads to keep memory busy, or too little to hide arithmetic behind.

    Little's law on an H200: 4.8 TB/s for 700 ns, over 132 processors, is 25 KB in flight on each, or 50
    loads of 16 bytes by 32 lanes. A warp has those of one turn of its loop under way at once, or all of them
    where there is no loop. At least 12 warps (three for each scheduler) hide the latency of arithmetic.
    """
    loads = facts["loop_loads"] or len(facts["loads"])
    return facts["warps"] < 12 or facts["warps"] * loads < 50


def test_enough_warps_are_resident(kernels):
    # Loads of `dense_conv2d` fill shared memory turns ahead and wait for nothing: fewer warps suffice.
    dense = {name: facts["warps"] for name, facts in kernels.items() if name.startswith("dense_conv2d")}
    assert min(dense.values()) >= 8, dense
    others = {name: facts for name, facts in kernels.items() if not name.startswith("dense_conv2d")}
    assert {name: facts for name, facts in others.items() if _starved(facts)} == {}
    # Three blocks of 128 threads fit a processor's 65536 registers.
    assert {name: facts["registers"] for name, facts in others.items() if facts["registers"] > 168} == {}


# Instructions of the compiled loop for one multiply-add, Triton 3.6 and 3.8. Before the weight was decoded
# for several runs of outputs: 40 and 10 (batch 1), 7 and 10 (batch 8 and 64). The tiles of the rule have
# more than the others here, which hold more sums, and are faster by measurement nevertheless.
INSTRUCTIONS = {
    "batch 1, 8 runs": {"float32": 5.5, "float16": 7.0, "bfloat16": 7.0},
    "batch 1, 16 runs": {"float32": 5.0, "float16": 6.0, "bfloat16": 6.0},
    "batch 8, 2 shares a warp": {"float32": 7.0, "float16": 6.0, "bfloat16": 6.0},
    "batch 64, 2 shares a warp": {"float32": 7.0, "float16": 6.0, "bfloat16": 6.0},
    "batch 1": {"float32": 14.5, "float16": 16.0, "bfloat16": 16.0},
    "batch 1, large map": {"float32": 5.75, "float16": 7.0, "bfloat16": 7.0},
    "batch 8": {"float32": 7.5, "float16": 5.25, "bfloat16": 6.0},
    "batch 64": {"float32": 6.5, "float16": 5.25, "bfloat16": 6.0},
}


@pytest.mark.parametrize("case", INSTRUCTIONS)
def test_a_multiply_add_of_a_convolution_costs_few_instructions(kernels, case):
    for dtype, limit in INSTRUCTIONS[case].items():
        facts = kernels[f"sparse_conv2d {case} {dtype}"]
        assert facts["loop_instructions"] / facts["loop_multiply_adds"] <= limit, (dtype, facts)


# Instructions of the loop, Triton 3.6 and 3.8. With masks and with sums of offsets: 4.7 to 5.9.
def test_a_multiply_add_of_a_fully_connected_layer_costs_few_instructions(kernels):
    for case, limit in {"spmm batch 8": 4.75, "spmm batch 64": 4.0}.items():
        for dtype in DTYPES:
            facts = kernels[f"{case} {dtype}"]
            assert facts["loop_instructions"] / facts["loop_multiply_adds"] <= limit, (case, dtype, facts)


def test_a_few_rows_or_many_are_gathered_from_cache_or_shared_memory(kernels):
    for dtype in DTYPES:
        few, many = kernels[f"spmv {dtype}"], kernels[f"spmv many rows {dtype}"]
        assert few["shared_bytes"] < 1024 < many["shared_bytes"]


def test_sums_are_float32_on_the_cuda_cores(kernels):
    """Sparse kernels promise IEEE float32: neither tensor cores nor, by accident, float64."""
    assert not [name for name, facts in kernels.items() if facts["float64"]]
    on_tensor_cores = {name.split()[0] for name, facts in kernels.items() if facts["tensor_cores"]}
    assert on_tensor_cores == {"dense_conv2d"}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "name",
    [
        "spmv many rows",
        *(f"{name} batch {batch}" for name in ("spmm", "sparse_conv2d") for batch in (8, 64)),
        "sparse_conv2d batch 64, 64-bit offsets",
        *("copy batch 64", "mul batch 64", "add channels_last"),
    ],
)
def test_reads_16_bytes_at_a_time(kernels, name, dtype):
    assert any(".v4.b32" in load for load in kernels[f"{name} {dtype}"]["loads"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "name",
    [
        *("expand convolution", "expand linear", "dense_conv2d batch 1", "dense_conv2d batch 64"),
        *("copy batch 64", "copy from channels_last", "mul batch 64", "add channels_last"),
    ],
)
def test_writes_16_bytes_at_a_time(kernels, name, dtype):
    assert any(".v4.b32" in store for store in kernels[f"{name} {dtype}"]["stores"])


@pytest.mark.parametrize("name", ["max_pool2d batch 64", "avg_pool2d batch 64"])
def test_pools_move_at_least_8_bytes_at_a_time(kernels, name):
    for dtype in DTYPES:
        facts = kernels[f"{name} {dtype}"]
        assert any(".v2.b32" in load or ".v4.b32" in load for load in facts["loads"])
        assert any(".v2.b32" in store or ".v4.b32" in store for store in facts["stores"])


@pytest.mark.parametrize(
    ("network", "batch", "dtype", "registers"),
    [("resnet18", 8, "float32", 80), ("mobilenet_v3_small", 1, "float16", 128)],
)
def test_whole_networks_compile(network, batch, dtype, registers):
    """Every kernel of a real network's plan keeps to its registers (80: six blocks, 128: four)."""
    facts = offline(network, str(batch), dtype)
    assert any(name.startswith("sparse_conv2d_kernel") for name in facts)
    assert {name: f for name, f in facts.items() if f["spilled_bytes"] or f["warps"] < 12} == {}
    assert {name: f for name, f in facts.items() if f["registers"] > registers} == {}

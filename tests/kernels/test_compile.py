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
    # Three blocks of 128 threads fit a processor's 65536 registers. Triton 3.8 needs 80, 3.6 up to 140.
    assert {name: facts["registers"] for name, facts in kernels.items() if facts["registers"] > 168} == {}


def test_sums_are_float32_on_the_cuda_cores(kernels):
    """Sparse kernels promise IEEE float32: neither tensor cores nor, by accident, float64."""
    assert not [name for name, facts in kernels.items() if facts["tensor_cores"] or facts["float64"]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "name",
    [
        "spmv",
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
        *("expand convolution", "expand linear"),
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
    assert {name: f for name, f in facts.items() if f["spilled_bytes"] or f["registers"] > registers} == {}

"""What the compiler makes of the kernels for a GPU, checked without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def kernels():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_sm90.py")
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_nothing_spills(kernels):
    assert {name: kernel["spills"] for name, kernel in kernels.items() if any(kernel["spills"])} == {}
    assert all(kernel["registers"] <= 168 for kernel in kernels.values())


@pytest.mark.parametrize(
    "name",
    ["spmv fp16", "spmv fp32", "spmm fp16 batch 8", "spmm fp32 batch 8"]
    + [f"conv {value} batch {batch}" for value in ("fp16", "fp32") for batch in (8, 64)],
)
def test_reads_16_bytes_at_a_time(kernels, name):
    assert any(".v4.b32" in load for load in kernels[name]["loads"])


@pytest.mark.parametrize("name", ["conv fp32 batch 8", "conv fp32 batch 64", "expand fp16", "expand fp32"])
def test_writes_16_bytes_at_a_time(kernels, name):
    assert any(".v4.b32" in store for store in kernels[name]["stores"])

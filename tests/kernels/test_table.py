"""Every kernel of the table against its naive reference, over all value types and awkward batches."""

import ast
from pathlib import Path

import finepruning.kernels
import pytest
import torch
import torch.nn.functional as F
from finepruning.kernels import common, naive
from finepruning.kernels.dense_tile import cut
from finepruning.kernels.expand import expand_kernel
from finepruning.kernels.table import KERNELS, linear_kernel
from kernel_cases import DEVICE, assert_close, border_is_zero, bordered, poisoned, sparse_weight

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BATCHES = (1, 3, 16, 17, 64)


def _random(*shape, dtype):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)


def _linear(name, batch, dtype):
    if KERNELS[name] is not linear_kernel(batch):
        return None
    weight = sparse_weight((11, 90), 0.2, dtype=dtype, alignment=8)
    x, bias, residual = (_random(*shape, dtype=dtype) for shape in ((batch, 90), (11,), (batch, 11)))
    y, _ = poisoned((batch, 11), dtype=dtype)
    KERNELS[name].launch(
        x.to(DEVICE), weight, y, bias=bias.to(DEVICE), residual=residual.to(DEVICE), activation="relu"
    )
    return y, naive.finish(naive.linear(x, weight), bias, residual, "relu")


def _convolution(name, batch, dtype):
    weight = sparse_weight((4, 3, 3, 3), 0.4, dtype=dtype)
    x = _random(batch, 6, 5, 7, dtype=dtype)
    geometry = {"kernel": (3, 3), "stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2}
    expected = naive.conv2d(x, weight, **geometry)
    residual, bias = _random(*expected.shape, dtype=dtype), _random(4, dtype=dtype)
    y, memory = poisoned(tuple(expected.shape), 1, dtype)
    KERNELS[name].launch(
        bordered(x, 2), weight, y,
        bias=bias.to(DEVICE), residual=residual.to(DEVICE), activation="relu6", halo=1, **geometry,
    )  # fmt: skip
    assert border_is_zero(memory, tuple(expected.shape), 1)
    return y, naive.finish(expected, bias, residual, "relu6")


def _dense_convolution(name, batch, dtype):
    if batch > 3:  # nothing in it depends on the batch but the count of pixels; the interpreter is slow
        return None
    weight = sparse_weight((40, 6, 3, 3), 0.9, dtype=dtype)
    filters = naive.dense_matrix(weight).view(40, 6, 3, 3)
    matrix = filters.permute(0, 2, 3, 1).reshape(40, -1).to(DEVICE, dtype).contiguous()
    geometry = {"kernel": (3, 3), "stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}
    x = _random(batch, 6, 5, 7, dtype=dtype)
    expected = naive.conv2d(x, weight, groups=1, **geometry)
    residual, bias = _random(*expected.shape, dtype=dtype), _random(40, dtype=dtype)
    y, memory = poisoned(tuple(expected.shape), 1, dtype)
    x = x.to(DEVICE).contiguous(memory_format=torch.channels_last)
    tile = cut((40, expected.shape[0] * expected.shape[2] * expected.shape[3], 54), 16, 16, 16, 3, 4, 2)
    partial = torch.full((tile.partial,), float("nan"), device=DEVICE)
    arrived = torch.zeros(tile.tiles, dtype=torch.int32, device=DEVICE)
    KERNELS[name].launch(
        x, matrix, y, partial, arrived, tile=tile,
        bias=bias.to(DEVICE), residual=residual.to(DEVICE), activation="relu6", halo=1, **geometry,
    )  # fmt: skip
    assert border_is_zero(memory, tuple(expected.shape), 1)
    assert not arrived.any()
    return y, naive.finish(expected, bias, residual, "relu6")


def _expand(name, batch, dtype):
    weight = sparse_weight((batch, 3, 3, 2), 0.3, dtype=dtype)
    dense = torch.full((batch, 18), float("nan"), dtype=dtype, device=DEVICE)
    KERNELS[name].launch(weight, dense, kernel=(3, 2), channels_last=True)
    return dense, naive.dense_matrix(weight).view(batch, 3, 3, 2).permute(0, 2, 3, 1).reshape(batch, 18)


def _elementwise(name, batch, dtype):
    a, b, residual = _random(batch, 3, 4, 5, dtype=dtype), _random(1, 3, 1, 1, dtype=dtype), None
    expected = {"copy": a.float(), "add": a.float() + b.float(), "mul": a.float() * b.float()}[name]
    if name != "copy":
        residual = _random(batch, 3, 4, 5, dtype=dtype)
    y, memory = poisoned((batch, 3, 4, 5), 2, dtype)
    KERNELS[name].launch(
        a.to(DEVICE), y, b=None if name == "copy" else b.to(DEVICE),
        residual=None if residual is None else residual.to(DEVICE), activation="silu", halo=2,
    )  # fmt: skip
    assert border_is_zero(memory, (batch, 3, 4, 5), 2)
    return y, naive.finish(expected, None, residual, "silu")


def _pool(name, batch, dtype):
    x = _random(batch, 2, 7, 6, dtype=dtype)
    pool = F.max_pool2d if name == "max_pool2d" else F.avg_pool2d
    expected = pool(x.float(), 3, 2, 1, ceil_mode=True)
    y, memory = poisoned(tuple(expected.shape), 1, dtype)
    KERNELS[name].launch(x.to(DEVICE), y, kernel=(3, 3), stride=(2, 2), padding=(1, 1), halo=1)
    assert border_is_zero(memory, tuple(expected.shape), 1)
    return y, expected


RUN = {
    "spmv": _linear,
    "spmm": _linear,
    "sparse_conv2d": _convolution,
    "dense_conv2d": _dense_convolution,
    "expand": _expand,
    **dict.fromkeys(("copy", "add", "mul"), _elementwise),
    **dict.fromkeys(("max_pool2d", "avg_pool2d"), _pool),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KERNELS)
def test_matches_the_reference(name, dtype):
    if name == "dense_conv2d" and dtype is torch.bfloat16 and DEVICE.type == "cpu":
        pytest.skip("Triton's interpreter multiplies bfloat16 matrices wrongly")
    results = [RUN[name](name, batch, dtype) for batch in BATCHES]
    assert any(results)
    for result in results:
        if result is not None:
            assert_close(*result, dtype)


@pytest.mark.parametrize("name", ["sparse_conv2d", "copy", "add", "max_pool2d", "avg_pool2d"])
def test_offsets_of_64_bits(name, monkeypatch):
    """Maps of more than 2^31 elements take another path through the kernels; here small ones do."""
    monkeypatch.setattr(common, "MAX_OFFSET", 0)
    assert_close(*RUN[name](name, 3, torch.float32))


def test_large_maps_need_64_bits():
    assert not common.needs_64_bits(torch.empty(256, 64, 226, 226, device="meta"))
    assert common.needs_64_bits(torch.empty(768, 64, 226, 226, device="meta"))
    assert not common.needs_64_bits(torch.empty(1, 8, 1, 1, device="meta").expand(1 << 20, 8, 224, 224))


def test_no_kernel_is_outside_the_table():
    folder = Path(finepruning.kernels.__file__).parent
    if not (folder / "table.py").exists():  # an editable install keeps the sources elsewhere
        folder = Path(expand_kernel.fn.__code__.co_filename).parent
    defined = {
        node.name
        for file in folder.glob("*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel") and node.decorator_list
    }
    assert defined == {kernel.function.fn.__name__ for kernel in KERNELS.values()}

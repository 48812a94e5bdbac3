import pytest
import torch
from finepruning.kernels import naive
from finepruning.kernels.common import ACTIVATIONS
from finepruning.kernels.table import linear_kernel
from kernel_cases import DEVICE, assert_close, poisoned, sparse_weight


def sparse_linear(x, weight, y, **finish):
    linear_kernel(x.shape[0]).launch(x, weight, y, **finish)


@pytest.mark.parametrize("batch", [1, 3, 16, 17, 64, 70])
@pytest.mark.parametrize(("rows", "columns", "density"), [(1, 1, 1.0), (5, 7, 0.0), (9, 130, 0.2)])
def test_matches_dense(batch, rows, columns, density):
    weight = sparse_weight((rows, columns), density, alignment=8)
    x = torch.randn(batch, columns, device=DEVICE)
    y, _ = poisoned((batch, rows))
    sparse_linear(x, weight, y)
    assert_close(y, naive.linear(x.cpu(), weight))


@pytest.mark.parametrize("batch", [1, 5])
def test_all_zero_weight_gives_the_bias(batch):
    weight = sparse_weight((9, 6), 0.0)
    weight.values.zero_()
    bias = torch.randn(9, device=DEVICE)
    y, _ = poisoned((batch, 9))
    sparse_linear(torch.randn(batch, 6, device=DEVICE), weight, y, bias=bias)
    assert_close(y, bias.expand(batch, 9))


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(
    ("dtype", "activation"),
    [(torch.float32, name) for name in ACTIVATIONS] + [(torch.float16, "relu"), (torch.bfloat16, None)],
)
def test_bias_residual_activation(batch, dtype, activation):
    weight = sparse_weight((10, 40), 0.3, dtype=dtype)
    x = torch.randn(batch, 40, device=DEVICE).to(dtype)
    bias = torch.randn(10, device=DEVICE).to(dtype)
    residual = torch.randn(batch, 10, device=DEVICE).to(dtype)
    y, _ = poisoned((batch, 10), dtype=dtype)
    sparse_linear(x, weight, y, bias=bias, residual=residual, activation=activation)
    expected = naive.finish(naive.linear(x.cpu(), weight), bias.cpu(), residual.cpu(), activation)
    assert_close(y, expected, dtype)


@pytest.mark.parametrize("batch", [1, 3])
def test_any_strides(batch):
    weight = sparse_weight((6, 12), 0.5)
    x = torch.randn(batch, 24, device=DEVICE)[:, ::2]
    out = torch.full((batch, 12), float("nan"), device=DEVICE)
    sparse_linear(x, weight, out[:, ::2])
    assert_close(out[:, ::2], naive.linear(x.cpu(), weight))
    assert out[:, 1::2].isnan().all()


def test_columns_beyond_16_bits():
    weight = sparse_weight((3, 66000), 0.001)
    x = torch.randn(2, 66000, device=DEVICE)
    y, _ = poisoned((2, 3))
    sparse_linear(x, weight, y)
    assert_close(y, naive.linear(x.cpu(), weight))

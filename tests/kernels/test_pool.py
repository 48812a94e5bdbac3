import pytest
import torch
import torch.nn.functional as F
from finepruning.kernels import naive
from finepruning.kernels.pool import pool2d
from kernel_cases import DEVICE, assert_close, border_is_zero, poisoned


@pytest.mark.parametrize("batch", [1, 3, 16])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "ceil_mode"),
    [
        ((3, 3), (2, 2), (0, 0), (1, 1), False),
        ((3, 3), (2, 2), (1, 1), (1, 1), True),
        ((2, 3), (1, 2), (1, 0), (2, 1), False),
        ((2, 2), (2, 2), (0, 0), (1, 1), True),
    ],
)
def test_max(batch, kernel, stride, padding, dilation, ceil_mode):
    x = torch.randn(batch, 3, 11, 8)
    expected = F.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode)
    y, memory = poisoned(tuple(expected.shape), 1)
    pool2d("max", x.to(DEVICE), y, kernel=kernel, stride=stride, padding=padding, dilation=dilation, halo=1)
    assert_close(y, expected)
    assert border_is_zero(memory, tuple(expected.shape), 1)


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("include_pad", [True, False])
@pytest.mark.parametrize("divisor", [None, 5])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "ceil_mode"),
    [((7, 5), (7, 5), (0, 0), False), ((3, 3), (2, 2), (1, 1), True), ((3, 2), (2, 3), (1, 1), True)],
)
def test_average(batch, include_pad, divisor, kernel, stride, padding, ceil_mode):
    x = torch.randn(batch, 4, 7, 5)
    expected = F.avg_pool2d(x, kernel, stride, padding, ceil_mode, include_pad, divisor)
    y, _ = poisoned(tuple(expected.shape))
    pool2d(
        "avg", x.to(DEVICE), y, kernel=kernel, stride=stride, padding=padding,
        count_include_pad=include_pad, divisor_override=divisor,
    )  # fmt: skip
    assert_close(y, expected)


@pytest.mark.parametrize("halo", [0, 1])
@pytest.mark.parametrize("mode", ["max", "avg"])
@pytest.mark.parametrize("channels", [1, 3, 70])
def test_channels_last(channels, mode, halo):
    x = torch.randn(2, channels, 9, 7)
    expected = (F.max_pool2d if mode == "max" else F.avg_pool2d)(x, 3, 2, 1)
    y, memory = poisoned(tuple(expected.shape), halo)
    last = x.to(DEVICE).contiguous(memory_format=torch.channels_last)
    pool2d(mode, last, y, kernel=(3, 3), stride=(2, 2), padding=(1, 1), halo=halo)
    assert_close(y, expected)
    assert border_is_zero(memory, tuple(expected.shape), halo)
    if not halo:
        y = torch.full_like(y, float("nan")).contiguous(memory_format=torch.channels_last)
        pool2d(mode, last, y, kernel=(3, 3), stride=(2, 2), padding=(1, 1))
        assert_close(y, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_and_activation(dtype):
    x = torch.randn(2, 3, 6, 6).to(dtype)
    expected = naive.activate(F.max_pool2d(x.float(), 2, 2), "hardswish")
    y, _ = poisoned((2, 3, 3, 3), dtype=dtype)
    pool2d("max", x.to(DEVICE), y, kernel=(2, 2), stride=(2, 2), activation="hardswish")
    assert_close(y, expected, dtype)


def test_nan_survives_max():
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 1, 1] = float("nan")
    y = torch.zeros(1, 1, 2, 2, device=DEVICE)
    pool2d("max", x.to(DEVICE), y, kernel=(2, 2), stride=(2, 2))
    assert y.isnan().tolist() == [[[[True, False], [False, False]]]]

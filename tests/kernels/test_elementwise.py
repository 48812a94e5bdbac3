import pytest
import torch
from finepruning.kernels import naive
from finepruning.kernels.elementwise import elementwise
from kernel_cases import DEVICE, assert_close, border_is_zero, poisoned


@pytest.mark.parametrize("shape", [(1, 3, 5, 7), (3, 2, 1, 1), (17, 4, 3, 2), (2, 70), (1, 1)])
def test_copy_from_any_strides(shape):
    x = torch.randn(shape, device=DEVICE)
    if len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    halo = 3 if len(shape) == 4 else 0
    y, memory = poisoned(shape, halo)
    elementwise("copy", x, y, halo=halo)
    assert_close(y, x)
    if halo:
        assert border_is_zero(memory, shape, halo)


def test_copy_converts_between_types():
    x = torch.randn(2, 3, 4, 4, device=DEVICE)
    y, _ = poisoned((2, 3, 4, 4), dtype=torch.float16)
    elementwise("copy", x, y)
    assert_close(y, x.half(), torch.float16)


@pytest.mark.parametrize("op", ["add", "mul"])
@pytest.mark.parametrize("other", [(2, 3, 4, 5), (2, 3, 1, 1), (1, 3, 1, 1), (1,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_two_inputs(op, other, dtype):
    a, b = torch.randn(2, 3, 4, 5).to(dtype), torch.randn(other).to(dtype)
    residual = torch.randn(2, 3, 4, 5).to(dtype)
    y, _ = poisoned((2, 3, 4, 5), dtype=dtype)
    elementwise(op, a.to(DEVICE), y, b=b.to(DEVICE), residual=residual.to(DEVICE), activation="relu")
    both = a.float() + b.float() if op == "add" else a.float() * b.float()
    assert_close(y, naive.finish(both, None, residual, "relu"), dtype)


@pytest.mark.parametrize(("op", "b"), [("sub", torch.ones(1)), ("copy", torch.ones(1)), ("add", None)])
def test_wrong_operation(op, b):
    with pytest.raises(ValueError, match="op must be"):
        elementwise(op, torch.ones(1, 1), torch.ones(1, 1), b=b)


def test_wrong_rank():
    with pytest.raises(ValueError, match="2 or 4 dimensions"):
        elementwise("copy", torch.ones(1, 1, 1), torch.ones(1, 1, 1))

import pytest
import torch
from finepruning.kernels import naive
from finepruning.kernels.expand import expand
from finepruning.kernels.sliced_ell import pack, to_device
from kernel_cases import DEVICE, sparse_weight

from finepruning.sparse.csr import CSR


def _poisoned_matrix(rows, columns, dtype=torch.float32):
    return torch.full((rows, columns), float("nan"), dtype=dtype, device=DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "columns", "density"), [(1, 1, 1.0), (5, 7, 0.0), (17, 1500, 0.2), (9, 30, 1.0)]
)
def test_matches_dense(rows, columns, density, dtype):
    weight = sparse_weight((rows, columns), density, dtype=dtype, alignment=8)
    dense = _poisoned_matrix(rows, columns, dtype)
    expand(weight, dense)
    torch.testing.assert_close(dense.float().cpu(), naive.dense_matrix(weight), rtol=0, atol=0)


def test_channels_last():
    weight = sparse_weight((6, 5, 3, 3), 0.4)
    dense = _poisoned_matrix(6, 45)
    expand(weight, dense, kernel=(3, 3), channels_last=True)
    expected = naive.dense_matrix(weight).reshape(6, 5, 3, 3).permute(0, 2, 3, 1)
    torch.testing.assert_close(dense.cpu().reshape(6, 3, 3, 5), expected, rtol=0, atol=0)


def test_rows_of_one_window():
    torch.manual_seed(0)
    csr = CSR.from_dense(torch.randn(40, 50) * (torch.rand(40, 50) < 0.3))
    weight = to_device(pack(csr.values, csr.col, csr.rowptr, 50, window=16), DEVICE)
    for first in (0, 16, 32):
        dense = _poisoned_matrix(min(16, 40 - first), 50)
        expand(weight, dense, first_row=first)
        torch.testing.assert_close(dense.cpu(), csr.to_dense()[first : first + 16], rtol=0, atol=0)

import pytest
import torch
from finepruning.kernels import naive
from finepruning.kernels.sliced_ell import pack

from finepruning.sparse.csr import CSR


def _pack(dense, **options):
    csr = CSR.from_dense(dense)
    return pack(csr.values, csr.col, csr.rowptr, csr.columns, **options)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (8, 7), (17, 33), (64, 9)])
@pytest.mark.parametrize(("alignment", "window"), [(1, None), (8, None), (2, 8), (8, 16)])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_packing_keeps_every_entry(shape, alignment, window, density):
    torch.manual_seed(0)
    dense = torch.randn(shape) * (torch.rand(shape) < density)
    weight = _pack(dense, alignment=alignment, window=window)
    torch.testing.assert_close(naive.dense_matrix(weight), dense, rtol=0, atol=0)
    widths = weight.ptr.diff()
    assert (widths % alignment == 0).all()
    assert weight.values.numel() == weight.col.numel() == 8 * int(weight.ptr[-1])


def test_rows_stay_in_their_window_longest_first():
    dense = torch.tril(torch.ones(32, 40))
    weight = _pack(dense, window=16)
    assert weight.order[:16].tolist() == list(range(15, -1, -1))
    assert weight.order[16:].tolist() == list(range(31, 15, -1))


def test_sorting_keeps_padding_small():
    torch.manual_seed(0)
    dense = torch.randn(512, 1152) * (torch.rand(512, 1152) < 0.1)
    weight = _pack(dense)
    assert weight.values.numel() < 1.03 * int((dense != 0).sum())


def test_wide_matrices_use_32_bit_columns():
    dense = torch.zeros(2, 70000)
    dense[1, 69999] = 1
    weight = _pack(dense)
    assert weight.col.dtype == torch.int32
    assert weight.col.max() == 69999


@pytest.mark.parametrize("window", [0, -8, 12])
def test_window_must_hold_whole_slices(window):
    with pytest.raises(ValueError, match="multiple of 8"):
        _pack(torch.ones(4, 4), window=window)

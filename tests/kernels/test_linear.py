import pytest
import torch
from finepruning.kernels import linear, naive
from finepruning.kernels.common import ACTIVATIONS
from finepruning.kernels.linear import SpmmTile, SpmvTile
from finepruning.kernels.sliced_ell import SlicedEll
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


SPMV_TILES = [
    SpmvTile(1, 64, 1, False, False, True, 1),
    SpmvTile(1, 64, 1, False, True, False, 4),
    SpmvTile(2, 128, 8, False, False, True, 2),
    SpmvTile(8, 16, 2, False, True, True, 4),
    SpmvTile(16, 32, 8, False, False, True, 4),
    SpmvTile(4, 32, 8, True, False, True, 4),
    SpmvTile(16, 16, 1, True, True, False, 4),
    SpmvTile(32, 64, 8, True, False, True, 8),
]
SPMM_TILES = [
    SpmmTile(1, 64, 8, 8, 4),
    SpmmTile(2, 4, 16, 1, 1),
    SpmmTile(8, 8, 4, 1, 4),
    SpmmTile(16, 16, 2, 8, 4),
    SpmmTile(32, 4, 1, 1, 16),
]


def tiled(monkeypatch, tile):
    monkeypatch.setattr(linear, "spmv_tile", lambda weight: tile)
    monkeypatch.setattr(linear, "spmm_tile", lambda weight, batch: tile)


# Rows that fill neither a slice nor a program, one with more entries than the others, one with none.
@pytest.mark.parametrize("alignment", [1, 8])
@pytest.mark.parametrize(("rows", "columns", "density"), [(1, 1, 1.0), (21, 150, 0.2), (40, 96, 0.9)])
@pytest.mark.parametrize(("batch", "tile"), [(1, t) for t in SPMV_TILES] + [(5, t) for t in SPMM_TILES])
def test_every_tile_at_awkward_shapes(monkeypatch, batch, tile, rows, columns, density, alignment):
    tiled(monkeypatch, tile)
    weight = sparse_weight((rows, columns), density, alignment=alignment)
    x = torch.randn(batch, 2 * columns, device=DEVICE)[:, ::2]
    bias, residual = torch.randn(rows, device=DEVICE), torch.randn(batch, rows, device=DEVICE)
    y = torch.full((batch, 3 * rows), float("nan"), device=DEVICE)
    sparse_linear(x, weight, y[:, ::3], bias=bias, residual=residual, activation="relu")
    expected = naive.finish(naive.linear(x.cpu(), weight), bias.cpu(), residual.cpu(), "relu")
    assert_close(y[:, ::3], expected)
    assert y[:, 1::3].isnan().all()


@pytest.mark.parametrize(("batch", "tile"), [(1, t) for t in SPMV_TILES] + [(8, t) for t in SPMM_TILES])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_tile_in_16_bits(monkeypatch, batch, tile, dtype):
    tiled(monkeypatch, tile)
    weight = sparse_weight((19, 130), 0.3, dtype=dtype, alignment=8)
    x = torch.randn(batch, 130, device=DEVICE).to(dtype)
    y, _ = poisoned((batch, 19), dtype=dtype)
    sparse_linear(x, weight, y)
    assert_close(y, naive.linear(x.cpu(), weight), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("rows", "columns"), [(4096, 25088), (4096, 9216), (4096, 4096), (1000, 2048), (1, 1)]
)
@pytest.mark.parametrize("density", [0.1, 0.02])
def test_tiles_of_real_layers(rows, columns, density, dtype):
    """What a processor holds: registers for the entries of a turn, shared memory for x."""
    entries = int(rows * columns * density) + 1
    values = torch.empty(entries, dtype=dtype, device="meta")
    weight = SlicedEll(values, values, values, values, rows, columns, 8, 8)
    tile = linear.spmv_tile(weight)
    assert 1 <= tile.rows * tile.block // (32 * tile.warps) <= 16
    assert not tile.shared or columns * dtype.itemsize <= 32 << 10
    for batch in (2, 8, 17, 64, 100):
        tile = linear.spmm_tile(weight, batch)
        assert tile.images <= 64
        assert tile.rows * tile.entries * tile.images // (32 * tile.warps) <= 64

import json
import math
from pathlib import Path

import pytest
import torch
from finepruning.kernels import conv2d, naive
from finepruning.kernels.conv2d import column_steps, sparse_conv2d
from finepruning.kernels.conv2d_tile import Tile, run_length, tile_shape
from kernel_cases import DEVICE, assert_close, border_is_zero, bordered, poisoned, sparse_weight

# batch, channels, height, width, out channels, kernel, stride, padding, dilation, groups, density
SHAPES = {
    "1x1": (1, 8, 5, 7, 9, (1, 1), (1, 1), (0, 0), (1, 1), 1, 0.4),
    "1x1 map": (3, 16, 1, 1, 10, (1, 1), (1, 1), (0, 0), (1, 1), 1, 0.3),
    "3x3 on 1x1 map": (2, 6, 1, 1, 4, (3, 3), (1, 1), (1, 1), (1, 1), 1, 0.5),
    "3x3 batch 3": (3, 5, 9, 7, 6, (3, 3), (1, 1), (1, 1), (1, 1), 1, 0.3),
    "3x3 batch 16": (16, 4, 5, 4, 3, (3, 3), (1, 1), (1, 1), (1, 1), 1, 0.3),
    "3x3 batch 17": (17, 3, 5, 5, 4, (3, 3), (2, 2), (1, 1), (1, 1), 1, 0.3),
    "stride 2 7x7": (1, 3, 17, 15, 8, (7, 7), (2, 2), (3, 3), (1, 1), 1, 0.5),
    "stride 4 11x11": (2, 3, 35, 27, 4, (11, 11), (4, 4), (2, 2), (1, 1), 1, 0.4),
    "dilation": (1, 4, 11, 9, 5, (3, 3), (1, 1), (2, 2), (2, 2), 1, 0.4),
    "uneven": (2, 4, 9, 8, 5, (3, 1), (2, 1), (1, 0), (1, 2), 1, 0.5),
    "groups": (3, 12, 6, 6, 8, (3, 3), (1, 1), (1, 1), (1, 1), 4, 0.4),
    "depthwise": (2, 7, 8, 9, 7, (3, 3), (1, 1), (1, 1), (1, 1), 7, 0.6),
    "depthwise multiplier": (1, 3, 6, 6, 6, (5, 5), (2, 2), (2, 2), (1, 1), 3, 0.6),
    "one weight": (1, 4, 6, 6, 5, (3, 3), (1, 1), (1, 1), (1, 1), 1, 0.0),
    "dense": (1, 3, 6, 6, 4, (3, 3), (1, 1), (1, 1), (1, 1), 1, 1.0),
    "many tiles": (1, 2, 29, 33, 2, (3, 3), (1, 1), (1, 1), (1, 1), 1, 0.5),
}


def _case(name, dtype=torch.float32):
    n, c, h, w, oc, kernel, stride, padding, dilation, groups, density = SHAPES[name]
    torch.manual_seed(1)
    weight = sparse_weight((oc, c // groups, *kernel), density, dtype=dtype)
    x = torch.randn(n, c, h, w).to(dtype)
    geometry = {
        "kernel": kernel,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
    }
    return x, weight, geometry, naive.conv2d(x, weight, **geometry)


@pytest.mark.parametrize(
    ("name", "halo"), [(name, 2) for name in SHAPES] + [("3x3 batch 3", 0), ("groups", 1)]
)
def test_matches_dense(name, halo):
    x, weight, geometry, expected = _case(name)
    y, memory = poisoned(tuple(expected.shape), halo)
    sparse_conv2d(bordered(x, max(geometry["padding"])), weight, y, halo=halo, **geometry)
    assert_close(y, expected)
    assert border_is_zero(memory, tuple(expected.shape), halo)


def test_input_border_may_be_wider_than_the_padding():
    x, weight, geometry, expected = _case("uneven")
    y, _ = poisoned(tuple(expected.shape))
    sparse_conv2d(bordered(x, 3), weight, y, **geometry)
    assert_close(y, expected)


@pytest.mark.parametrize(
    ("dtype", "activation"), [(torch.float32, "relu6"), (torch.float16, "relu"), (torch.bfloat16, None)]
)
def test_bias_residual_activation(dtype, activation):
    x, weight, geometry, expected = _case("groups", dtype)
    bias = torch.randn(8).to(dtype)
    residual = torch.randn(expected.shape).to(dtype)
    y, _ = poisoned(tuple(expected.shape), dtype=dtype)
    sparse_conv2d(
        bordered(x, 1),
        weight,
        y,
        bias=bias.to(DEVICE),
        residual=residual.to(DEVICE),
        activation=activation,
        **geometry,
    )
    assert_close(y, naive.finish(expected, bias, residual, activation), dtype)


def test_all_zero_weight_gives_zero():
    x, weight, geometry, expected = _case("3x3 batch 3")
    weight.values.zero_()
    y, _ = poisoned(tuple(expected.shape))
    sparse_conv2d(bordered(x, 1), weight, y, **geometry)
    assert (y == 0).all()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_output_of_any_strides(memory_format):
    x, weight, geometry, expected = _case("3x3 batch 3")
    y = torch.full_like(expected, float("nan"), memory_format=memory_format, device=DEVICE)
    sparse_conv2d(bordered(x, 1), weight, y, **geometry)
    assert_close(y, expected)


@pytest.mark.parametrize("kernel", [(1, 1), (1, 3), (3, 1), (3, 3), (11, 7)])
def test_columns_become_offsets_without_remainders(kernel):
    by_channel, by_row, by_tap = column_steps(1000, 40, 3, kernel)
    taps = kernel[0] * kernel[1]
    for column in range(4 * taps):
        channel, tap = divmod(column, taps)
        expected = channel * 1000 + tap // kernel[1] * 40 + tap % kernel[1] * 3
        actual = column * by_tap + column // kernel[1] * by_row + column // taps * by_channel
        # A kernel of one column skips what by_row would add for nothing.
        assert actual == expected


@pytest.mark.parametrize(
    ("tile", "batch"),
    [
        (Tile(1, 32, 1, 1, 1), 1),
        (Tile(2, 32, 1, 8, 4), 3),
        (Tile(2, 32, 8, 1, 8), 1),
        (Tile(1, 64, 4, 2, 4), 2),
        (Tile(4, 128, 8, 2, 8), 4),
        (Tile(2, 32, 1, 64, 2), 3),
    ],
)
@pytest.mark.parametrize("name", ["groups", "uneven", "depthwise"])
def test_every_tile_gives_the_same(name, tile, batch, monkeypatch):
    """Rows in blocks of 4 and 8 end inside a slice, runs beyond the map, shares beyond a row's weights."""
    monkeypatch.setitem(SHAPES, name, (batch, *SHAPES[name][1:]))
    monkeypatch.setattr(conv2d, "tile_shape", lambda *_: tile)
    x, weight, geometry, expected = _case(name)
    y, memory = poisoned(tuple(expected.shape), 1)
    sparse_conv2d(bordered(x, max(geometry["padding"])), weight, y, halo=1, **geometry)
    assert_close(y, expected)
    assert border_is_zero(memory, tuple(expected.shape), 1)


def test_lanes_hold_as_many_images_as_are_aligned():
    for batch, dtype, lanes in ((1, torch.float16, 1), (6, torch.float16, 2), (24, torch.float16, 8)):
        x, _ = poisoned((batch, 2, 3, 3), 1, dtype)
        assert run_length(x) == 32 * lanes
    assert run_length(torch.empty(8, 2, 3, 3)) == 32  # images are not innermost


def test_tiles_are_near_the_best_that_was_measured():
    """The rule against the recorded times of all tiles; benchmarks/gpu_tiles.py makes them."""
    path = Path(__file__).parents[2] / "benchmarks/results/sparse_conv2d_tiles_nvidia_h200.json"
    cases = {}
    for row in json.loads(path.read_text())["rows"]:
        layer = tuple(row[key] for key in ("rows", "stored", "outputs", "run", "itemsize"))
        cases.setdefault(layer, {})[tuple(row["tile"])] = row["us"]
    assert len(cases) == 28
    behind = [
        times[tuple(vars(tile_shape(*layer)).values())] / min(times.values())
        for layer, times in cases.items()
    ]
    assert math.prod(behind) ** (1 / len(behind)) <= 1.15
    assert max(behind) <= 2


def test_tiles_suit_the_layer():
    """One row a program, few sums a thread; large maps of single images take the most runs."""
    for layer in (
        (384, 384 * 173, 169, 32, 2),
        (512, 512 * 460, 64 * 28 * 28, 256, 2),
        (64, 640, 50176, 32, 4),
    ):
        tile = tile_shape(*layer)
        assert tile.rows == 1
        assert tile.split == tile.warps
        assert tile.runs * tile.run <= 8 * 32
    assert tile_shape(384, 384 * 173, 169, 32, 2).runs <= 2
    assert tile_shape(64, 640, 50176, 32, 4).runs == 4

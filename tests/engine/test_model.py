"""`SparseModel` as a user sees it."""

from __future__ import annotations

import copy
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import finepruning
from finepruning.engine import SparseModel
from finepruning.engine.model import MAX_EXECUTORS
from finepruning.errors import ArgumentError, CaptureError, DeviceError, InputError


def network() -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 36, 10),
    ).eval()
    with torch.no_grad():
        for layer in (module[0], module[5]):
            layer.weight *= torch.rand_like(layer.weight) < 0.1
    return module


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, SparseModel]:
    module = network()
    return module, SparseModel.from_dense(module, torch.zeros(1, 3, 12, 12))


def test_the_package_offers_it() -> None:
    assert finepruning.SparseModel is SparseModel


@pytest.mark.parametrize("batch", [1, 2, 17])
def test_results_for_any_batch(pair: tuple[nn.Module, SparseModel], batch: int) -> None:
    module, model = pair
    x = torch.randn(batch, 3, 12, 12)
    with torch.no_grad():
        expected = module(x)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    strided = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(strided), expected, rtol=1e-4, atol=1e-5)


def test_an_empty_batch(pair: tuple[nn.Module, SparseModel]) -> None:
    assert pair[1](torch.zeros(0, 3, 12, 12)).shape == (0, 10)


def test_saved_and_loaded(pair: tuple[nn.Module, SparseModel], tmp_path: Path) -> None:
    module = pair[0]
    model = SparseModel.from_dense(
        module,
        torch.zeros(2, 3, 12, 12),
        classes=[f"class {i}" for i in range(10)],
        preprocessing={"image_size": 12, "mean": (0.5, 0.5, 0.5)},
        provenance={"by": "a test"},
    )
    model.save_pretrained(tmp_path / "model")
    loaded = SparseModel.from_pretrained(tmp_path / "model")
    assert loaded.classes == model.classes
    assert loaded.preprocessing == {"image_size": 12, "mean": [0.5, 0.5, 0.5]}
    assert loaded.provenance == {"by": "a test"}
    assert loaded.input_shape == (3, 12, 12)
    x = torch.randn(3, 3, 12, 12)
    assert torch.equal(loaded(x), model(x))
    loaded.save_pretrained(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), (torch.bfloat16, 2e-2)])
def test_values_of_16_bits(
    pair: tuple[nn.Module, SparseModel], tmp_path: Path, dtype: torch.dtype | str, tolerance: float
) -> None:
    module, model = pair
    x = torch.randn(3, 3, 12, 12)
    expected = model(x)
    narrow = SparseModel.from_dense(module, x, dtype=dtype)
    narrow.save_pretrained(tmp_path / "narrow")
    model.save_pretrained(tmp_path / "wide")
    for other in (
        narrow,
        SparseModel.from_pretrained(tmp_path / "narrow"),
        SparseModel.from_pretrained(tmp_path / "wide", dtype=dtype),
    ):
        assert other.dtype is (getattr(torch, dtype) if isinstance(dtype, str) else dtype)
        assert float((other(x) - expected).norm() / expected.norm()) < tolerance
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("narrow", "wide")]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_layers_without_zeros_in_models_of_16_bits(dtype: torch.dtype) -> None:
    """Such layers are stored dense in the narrow type, and meet float32 values on the CPU."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).eval()
    x = torch.randn(2, 3, 4, 4)
    model = SparseModel.from_dense(module, x, dtype=dtype)
    with torch.no_grad():
        torch.testing.assert_close(model(x), module(x), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("activation", [nn.SiLU(), nn.GELU(), nn.Sigmoid(), nn.Hardswish(), nn.ReLU6()])
def test_activations_of_huge_values(activation: nn.Module) -> None:
    """Nothing may be left of values that an activation takes to zero."""
    x = torch.tensor([0.0, 1.0, 10.0, 80.0, 87.0, 88.0, 89.0, 100.0, 1e10, 1e30, 1e37])
    x = torch.cat([-x, x]).reshape(1, 1, 2, 11)
    model = SparseModel.from_dense(activation, x)
    torch.testing.assert_close(model(x), activation(x))


def test_to_dense_gives_the_weights_with_zeros(pair: tuple[nn.Module, SparseModel]) -> None:
    module, model = pair
    dense = model.to_dense()
    assert sorted(dense) == ["0.bias", "0.weight", "5.bias", "5.weight"]
    assert torch.equal(dense["5.weight"], module[5].weight)
    assert torch.equal(dense["0.weight"] == 0, module[0].weight == 0)


def test_the_plan_can_be_read(pair: tuple[nn.Module, SparseModel]) -> None:
    plan = pair[1].plan(batch=4)
    assert [step.op for step in plan] == ["conv2d", "max_pool2d", "view", "linear"]
    assert plan[0].shape == (4, 16, 12, 12)
    text = str(plan)
    assert len(text.splitlines()) == 1 + 4 + 1
    assert "conv2d+bias+relu" in text
    assert "batch 4" in text


WRONG = {
    "no tensor": ([1.0], "takes a tensor"),
    "no batch": (torch.zeros(3, 12, 12), "unsqueeze"),
    "rank": (torch.zeros(2, 3, 12, 12, 1), "4 dimensions"),
    "channels": (torch.zeros(1, 1, 12, 12), "channels"),
    "size": (torch.zeros(1, 3, 12, 11), "a size"),
    "dtype": (torch.zeros(1, 3, 12, 12, dtype=torch.float64), "float32, not float64"),
    "integers": (torch.zeros(1, 3, 12, 12, dtype=torch.uint8), "float32, not uint8"),
    "layout": (torch.zeros(1, 3, 12, 12).to_sparse(), "not a sparse_coo one"),
    "device": (torch.zeros(1, 3, 12, 12, device="meta"), "the input on meta"),
}


@pytest.mark.parametrize("case", sorted(WRONG))
def test_inputs_that_do_not_fit(pair: tuple[nn.Module, SparseModel], case: str) -> None:
    x, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        pair[1](x)


def test_arguments_that_do_not_fit(pair: tuple[nn.Module, SparseModel], tmp_path: Path) -> None:
    module, model = pair
    x = torch.zeros(1, 3, 12, 12)
    with pytest.raises(ArgumentError, match="3 classes"):
        SparseModel.from_dense(module, x, classes=["a", "b", "c"])
    with pytest.raises(ArgumentError, match="provenance must be a JSON object"):
        SparseModel.from_dense(module, x, provenance={"a": object()})
    with pytest.raises(ArgumentError, match="dtype must be"):
        SparseModel.from_dense(module, x, dtype="int8")
    with pytest.raises(InputError, match="batch"):
        SparseModel.from_dense(module, torch.zeros(3))
    with pytest.raises(ArgumentError, match="batch must be"):
        model.plan(0)
    model.save_pretrained(tmp_path / "m")
    with pytest.raises(DeviceError, match="not a device"):
        SparseModel.from_pretrained(tmp_path / "m", device="gpu")
    with pytest.raises(DeviceError, match=r"cuda:99"):
        SparseModel.from_pretrained(tmp_path / "m", device="cuda:99")


class Median(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.median(dim=1).values + x.logcumsumexp(1)[:, 0]


def test_an_operation_that_files_may_not_name_runs_but_is_not_saved(tmp_path: Path) -> None:
    model = SparseModel.from_dense(Median(), torch.zeros(1, 5))
    x = torch.randn(4, 5)
    torch.testing.assert_close(model(x), Median()(x))
    with pytest.raises(CaptureError, match=r"aten\.(median\.dim|logcumsumexp\.default)"):
        model.save_pretrained(tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_plans_are_bounded_and_shared_between_threads(pair: tuple[nn.Module, SparseModel]) -> None:
    model = copy.deepcopy(pair[1])
    inputs = [torch.randn(batch, 3, 12, 12) for batch in range(1, MAX_EXECUTORS + 4)]
    expected = [pair[1](x) for x in inputs]
    wrong: list[int] = []

    def work(offset: int) -> None:
        for step in range(2 * len(inputs)):
            index = (offset + step) % len(inputs)
            if not torch.allclose(model(inputs[index]), expected[index], rtol=1e-5, atol=1e-6):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in (0, 0, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(model._executors) <= MAX_EXECUTORS


def test_inside_another_module(pair: tuple[nn.Module, SparseModel]) -> None:
    wrapped = nn.Sequential(copy.deepcopy(pair[1]), nn.Softmax(1)).half()
    assert wrapped[0].dtype is torch.float16
    assert wrapped[0].input_dtype is torch.float32
    assert list(wrapped.parameters()) == []
    x = torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(wrapped(x), pair[1](x).softmax(1), rtol=1e-2, atol=1e-3)

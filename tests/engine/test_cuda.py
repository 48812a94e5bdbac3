"""The CUDA executor on whole small networks: on a GPU, or under Triton's interpreter without one."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor, nn

if not torch.cuda.is_available():
    # Before the first import of a kernel; see tests/kernels/conftest.py.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from finepruning.kernels.table import KERNELS

from finepruning.engine import cuda_choice
from finepruning.engine.capture import capture
from finepruning.engine.cuda import CudaExecutor
from finepruning.engine.fuse import fuse
from finepruning.engine.reference import ReferenceExecutor

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def _pruned(network: nn.Module, density: float = 0.3) -> nn.Module:
    torch.manual_seed(0)
    for parameter in network.parameters():
        if parameter.dim() > 1:
            parameter.data = torch.randn_like(parameter) * (torch.rand_like(parameter) < density) * 0.5
        else:
            parameter.data = torch.randn_like(parameter)
    return network.eval()


def _plan(network: nn.Module, shape: tuple[int, ...], dtype: torch.dtype = torch.float32):
    graph, tensors = capture(network, shape[1:], dtype)
    return fuse(graph, tensors, shape[0], dtype)


def _alexnet_like() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(),
        nn.Conv2d(12, 8, 3, padding=2, dilation=2, groups=2), nn.ReLU6(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(8 * 2 * 2, 20), nn.ReLU(), nn.Linear(20, 5),
    )  # fmt: skip


class _Residual(nn.Module):
    """A stride-2 bottleneck with projection, squeeze-and-excitation, concatenation and an ATen tail."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.reduce = nn.Conv2d(8, 4, 1)
        self.spatial = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4)
        self.extend = nn.Conv2d(4, 8, 1)
        self.project = nn.Conv2d(8, 8, 1, stride=2)
        self.gate = nn.Conv2d(8, 8, 1)
        self.side = nn.Conv2d(8, 3, 3, padding=1)
        self.head = nn.Linear(11, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = self.extend(torch.relu(self.spatial(torch.relu(self.reduce(x)))))
        x = torch.relu(y + self.project(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        x = torch.cat([x, self.side(x)], 1)
        x = torch.nn.functional.adaptive_avg_pool2d(x, 1)
        return torch.log_softmax(self.head(torch.flatten(x, 1)), 1)


class _Fire(nn.Module):
    """SqueezeNet: two fire modules, ceil-mode pooling, a convolution as classifier, global average."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.squeeze = nn.ModuleList([nn.Conv2d(8, 3, 1), nn.Conv2d(10, 4, 1)])
        self.one = nn.ModuleList([nn.Conv2d(3, 5, 1), nn.Conv2d(4, 6, 1)])
        self.three = nn.ModuleList([nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)])
        self.classifier = nn.Conv2d(12, 7, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for squeeze, one, three in zip(self.squeeze, self.one, self.three, strict=True):
            x = nn.functional.max_pool2d(x, 3, 2, ceil_mode=True)
            x = torch.relu(squeeze(x))
            x = torch.cat([torch.relu(one(x)), torch.relu(three(x))], 1)
        x = torch.relu(self.classifier(x))
        return torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)


class _Inverted(nn.Module):
    """MobileNet: expand, depthwise, squeeze-and-excite, project; batch norms, ReLU6 and hard swish."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.Hardswish())
        self.expand = nn.Sequential(nn.Conv2d(6, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(12, 12, 5, 1, 2, groups=12, bias=False), nn.BatchNorm2d(12), nn.Hardswish()
        )
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 4, 1), nn.ReLU(), nn.Conv2d(4, 12, 1), nn.Hardsigmoid()
        )
        self.project = nn.Sequential(nn.Conv2d(12, 6, 1, bias=False), nn.BatchNorm2d(6))
        self.head = nn.Sequential(nn.Linear(6, 9), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(9, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depthwise(self.expand(x))
        x = x + self.project(y * self.gate(y))
        return self.head(x.mean((2, 3)))


NETWORKS = {
    "alexnet-like": (_alexnet_like, (3, 21, 19)),
    "residual": (_Residual, (3, 8, 7)),
    "squeezenet-like": (_Fire, (3, 17, 15)),
    "mobilenet-like": (_Inverted, (3, 9, 11)),
}


def _names(plan):
    return [layer.name for layer in cuda_choice.layers(plan)]


def _compare(plan, methods, tolerance=1e-4, fused=False):
    executor = CudaExecutor(plan, DEVICE, methods=methods, fused=fused)
    value = plan.values[plan.input]
    x = torch.randn(value.shape).to(value.dtype)
    expected = ReferenceExecutor(plan)(x)
    actual = executor(x.to(DEVICE)).cpu()
    assert actual.dtype == expected.dtype
    error = (actual.double() - expected.double()).norm() / expected.double().norm()
    assert error <= tolerance, f"relative error {error:.2e}"
    return executor


@pytest.mark.parametrize(
    ("network", "batch", "method"),
    [
        *((network, batch, "sparse") for network in NETWORKS for batch in (1, 3)),
        *((network, 3, method) for network in NETWORKS for method in ("expand", "dense")),
        ("alexnet-like", 17, "sparse"),
    ],
)
def test_matches_the_reference(network, batch, method):
    make, shape = NETWORKS[network]
    plan = _plan(_pruned(make()), (batch, *shape))
    names = _names(plan)
    executor = _compare(plan, dict.fromkeys(names, method))
    kernels = {row.name: row.kernel for row in executor.report()}
    assert {"sparse": "triton sparse", "expand": "triton expand", "dense": "cu"}[method] in kernels[names[0]]


@pytest.mark.parametrize("batch", [2])
@pytest.mark.parametrize(
    "methods",
    [("sparse", "dense", "sparse", "expand", "sparse"), ("dense", "sparse", "expand", "sparse", "dense")],
)
def test_methods_may_be_mixed(batch, methods):
    make, shape = NETWORKS["alexnet-like"]
    plan = _plan(_pruned(make()), (batch, *shape))
    _compare(plan, dict(zip(_names(plan), methods, strict=True)))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-2), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("method", ["sparse", "expand"])
def test_16_bit(dtype, tolerance, method):
    make, shape = NETWORKS["residual"]
    plan = _plan(_pruned(make()), (2, *shape), dtype)
    _compare(plan, dict.fromkeys(_names(plan), method), tolerance)


@pytest.mark.parametrize("method", ["expand", "dense"])
@pytest.mark.parametrize("network", ["alexnet-like", "residual"])
def test_our_convolution_on_tensor_cores(network, method):
    make, shape = NETWORKS[network]
    plan = _plan(_pruned(make()), (2, *shape), torch.float16)
    executor = _compare(plan, dict.fromkeys(_names(plan), method), 1e-2, fused=True)
    kernels = [row.kernel for row in executor.report() if row.op == "conv2d"]
    ours = {"expand": "triton expand + dense_conv2d", "dense": "triton dense_conv2d"}[method]
    assert kernels.count(ours) == {"alexnet-like": 2, "residual": 5}[network]  # the others are not in CSR


@pytest.mark.parametrize("network", NETWORKS)
def test_every_memory_is_written_before_it_is_read(network, monkeypatch):
    """The arena starts as NaN, and two calls give the same result: no step relies on what was there."""
    make, shape = NETWORKS[network]
    plan = _plan(_pruned(make()), (3, *shape))
    real = torch.empty

    def poisoned(*size, **options):
        made = real(*size, **options)
        return made.fill_(0xFF) if made.dtype is torch.uint8 else made

    with monkeypatch.context() as patched:
        patched.setattr(torch, "empty", poisoned)
        executor = _compare(plan, dict.fromkeys(_names(plan), "sparse"))
    x = torch.randn(plan.values[plan.input].shape).to(DEVICE)
    assert torch.equal(executor(x), executor(x))
    # Only kernels of the table, libraries and PyTorch run; what may stay out of the table is listed here.
    known = {f"triton {name}" for name in KERNELS} | {"triton expand + cudnn", "triton expand + cublas"}
    assert {row.kernel for row in executor.report()} <= known | {"cudnn", "cublas", "aten", "view"}


@pytest.mark.parametrize("network", NETWORKS)
def test_what_the_planner_chooses_itself(network):
    make, shape = NETWORKS[network]
    _compare(_plan(_pruned(make(), 0.1), (2, *shape)), {})

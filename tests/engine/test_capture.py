"""Networks as people write them -> graph -> plan, against the network itself."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from finepruning.engine.capture import capture
from finepruning.engine.fuse import fuse
from finepruning.engine.plan import Plan
from finepruning.engine.reference import ReferenceExecutor
from finepruning.errors import CaptureError
from finepruning.sparse.csr import CSR


def thinned(module: nn.Module, density: float = 0.2) -> nn.Module:
    """The network in evaluation mode with random zeros and lively batch norms."""
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.weight *= torch.rand_like(layer.weight) < density
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.5, 2)
                if layer.affine:
                    layer.weight.normal_(1, 0.3)
                    layer.bias.normal_()
    return module.eval()


def check(module: nn.Module, shape: tuple[int, ...]) -> Plan:
    """Compare the plan with the network for batches of 1 and 3; return the plan for 3."""
    graph, tensors = capture(module, shape)
    for batch in (1, 3):
        x = torch.randn(batch, *shape)
        with torch.no_grad():
            expected = module(x.clone())
        plan = fuse(graph, tensors, batch)
        torch.testing.assert_close(ReferenceExecutor(plan)(x), expected, rtol=1e-4, atol=1e-5)
    return plan


def operations(plan: Plan) -> list[str]:
    return [str(step.attrs["target"]) if step.op == "aten" else step.op for step in plan.steps]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4, affine=False)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += x
        return self.head(F.adaptive_avg_pool2d(y.relu_(), 1).flatten(1))


def test_norms_residuals_and_activations_are_fused() -> None:
    plan = check(thinned(Residual()), (4, 6, 7))
    assert operations(plan) == ["conv2d", "conv2d", "avg_pool2d", "view", "linear"]
    first, second = plan.steps[:2]
    assert (first.activation, first.residual) == ("relu", None)
    assert (second.activation, second.residual) == ("relu", plan.input)
    assert first.bias is not None
    assert isinstance(second.weight, CSR)


def test_the_network_is_left_as_it_was() -> None:
    module = thinned(Residual())
    module.train()
    module.bn1.eval()
    before = copy.deepcopy(module.state_dict())
    capture(module, (4, 6, 6))
    assert module.training
    assert not module.bn1.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


class NormFirst(nn.Module):
    """As in DenseNet: the norm's input is read twice, so the norm cannot be folded into what is before it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return torch.cat([y, F.relu(self.norm(y))], 1)


def test_a_norm_that_cannot_be_folded_becomes_a_depthwise_convolution() -> None:
    plan = check(thinned(NormFirst()), (3, 5, 5))
    assert operations(plan) == ["conv2d", "conv2d", "concat"]
    assert plan.steps[1].attrs["groups"] == 6
    assert plan.steps[1].activation == "relu"


def test_norms_of_vectors() -> None:
    plan = check(
        thinned(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.BatchNorm1d(8))), (6,)
    )
    assert operations(plan) == ["linear", "aten.mul.Tensor", "aten.add.Tensor"]


class Twice(nn.Module):
    """One convolution called twice with different norms, and two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm1, self.norm2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)
        self.right.weight = self.left.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv(self.norm1(self.conv(x)))).mean((2, 3))
        return self.right(F.silu(self.left(y)))


def test_layers_used_twice_and_tied_weights() -> None:
    plan = check(thinned(Twice()), (4, 5, 5))
    convs = [step for step in plan.steps if step.op == "conv2d"]
    assert [step.name for step in convs] == ["conv", "conv@2"]
    linears = [step for step in plan.steps if step.op == "linear"]
    assert linears[0].weight is linears[1].weight


def test_masks_of_torch_prune() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4)).eval()
    prune.l1_unstructured(module[0], "weight", amount=0.9)
    prune.random_unstructured(module[3], "weight", amount=0.9)
    plan = check(module, (3, 6, 6))
    weights = [step.weight for step in plan.steps if step.weight is not None]
    assert [weight.nnz for weight in weights if isinstance(weight, CSR)] == [22, 51]


def test_parametrised_weights_are_computed_once() -> None:
    module = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 3)).eval()
    assert operations(check(module, (6,))) == ["linear", "linear"]


def test_channels_last_networks() -> None:
    check(thinned(Residual()).to(memory_format=torch.channels_last), (4, 6, 6))


class Functional(nn.Module):
    """Everything by hand: no module but the parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 2, 2, 3))
        self.matrix = nn.Parameter(torch.randn(5, 6))
        self.scale = nn.Parameter(torch.rand(6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.kernel, stride=2, groups=2, padding="valid").mul(self.scale)
        x = F.hardswish(x) * torch.sigmoid(x)
        x = F.pad(F.max_pool2d(x, 2, ceil_mode=True), (1, 0), value=-1.5)
        return F.log_softmax(x.amax((2, 3)) @ self.matrix.t(), dim=1)


def test_functional_calls() -> None:
    check(Functional(), (4, 9, 10))


@pytest.mark.parametrize("kernel", [(3, 3), (2, 4), (1, 2)])
def test_same_padding(kernel: tuple[int, int]) -> None:
    check(nn.Conv2d(2, 3, kernel, padding="same", dilation=2).eval(), (2, 9, 8))


class Shuffled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        left, right = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w).chunk(2, dim=1)
        first, *_, last = right.unbind(1)
        tokens = left.flatten(2).permute(0, 2, 1)
        position = torch.arange(h * w).view(1, -1, 1) / 7.0
        tokens = torch.cat([torch.zeros(n, 1, c // 2), tokens + position], 1)
        return tokens[:, 1:].mean(1) + first.sum((1, 2)).unsqueeze(1) * last.amax((1, 2)).unsqueeze(1)


def test_views_splits_and_shapes_that_depend_on_the_batch() -> None:
    check(Shuffled(), (4, 3, 5))


class Mutating(nn.Module):
    """In-place changes that other names of the same memory see."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        half = y[:, :2]
        half.relu_()
        mask = x.new_zeros(3, 4)
        mask[1:, ::2] = -3.0
        return (y + mask).sum((2, 3))


def test_mutation_through_views() -> None:
    check(Mutating(), (4, 3, 4))


def test_adaptive_pools_become_average_pools_where_windows_are_equal() -> None:
    assert operations(check(nn.AdaptiveAvgPool2d((3, 2)), (2, 6, 8))) == ["avg_pool2d"]
    assert operations(check(nn.AdaptiveAvgPool2d((4, 3)), (2, 6, 8))) == ["aten.adaptive_avg_pool2d.default"]
    module = nn.Sequential(nn.Conv2d(2, 2, 1), nn.AdaptiveAvgPool2d((6, 8)), nn.ReLU())
    assert operations(check(module, (2, 6, 8))) == ["conv2d"]


def test_subnormal_weights_count_as_zero() -> None:
    module = nn.Linear(100, 2)
    with torch.no_grad():
        module.weight.fill_(1e-40)
        module.weight[0, 3] = 1.0
    _, tensors = capture(module.eval(), (100,))
    weight = tensors["weight"] if "weight" in tensors else tensors["linear.weight"]
    assert isinstance(weight, CSR)
    assert weight.nnz == 1


class TwoResults(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, x * 2


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if bool(x.sum() > 0) else x - 1


class BatchDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (TwoResults(), "one tensor; it returns 2"),
        (Branching(), "cannot be traced"),
        (nn.Linear(7, 2), "cannot be traced"),
        (BatchDependent(), "batch"),
        (nn.Linear(3, 2).double(), "cannot be traced|float"),
    ],
)
def test_networks_that_cannot_be_captured(module: nn.Module, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        capture(module.eval(), (3,))


def test_weights_that_are_not_finite() -> None:
    module = nn.Linear(3, 2)
    with torch.no_grad():
        module.weight[0, 0] = float("nan")
    with pytest.raises(CaptureError, match="NaN or infinite"):
        capture(module.eval(), (3,))

"""Which norms are folded into the layer before them, and what that does to accuracy."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from finepruning.engine import SparseModel


def near_dead(depth: int) -> tuple[nn.Module, Tensor]:
    """Pruned layers whose channels do not vary, with norms that divide by nothing, and an input they know."""
    torch.manual_seed(0)
    module = nn.Sequential()
    x = torch.rand(1, 16, 1, 1).expand(4, 16, 6, 6)
    with torch.no_grad():
        for _ in range(depth):
            conv, norm = nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16)
            conv.weight *= torch.eye(16)[torch.randperm(16)].reshape(16, 16, 1, 1)
            y = module.append(conv)(x)
            norm.running_mean.copy_(y.mean((0, 2, 3)))
            norm.running_var.copy_(y.var((0, 2, 3)))
            norm.bias.normal_()
            module.append(norm).eval()
    return module, x


def test_near_dead_channels_are_computed_no_worse_than_by_torch() -> None:
    module, x = near_dead(3)
    with torch.no_grad():
        dense = module(x)
        exact = copy.deepcopy(module).double()(x.double())
    model = SparseModel.from_dense(module, x)
    assert [step.op for step in model.plan(4)] == ["conv2d"] * 6
    ours, torchs = (float((y - exact).norm() / exact.norm()) for y in (model(x), dense))
    # Folded, each weight is rounded on its own, and the third layer has amplified that by 316 twice.
    assert ours < torchs


def test_large_weights_alone_do_not_prevent_folding() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8)).eval()
    with torch.no_grad():
        module[0].weight *= 1000
    model = SparseModel.from_dense(module, torch.zeros(1, 8, 5, 5))
    assert [step.op for step in model.plan()] == ["conv2d"]


def test_a_vector_norm_with_a_large_gain_stays_a_step() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.ReLU()).eval()
    with torch.no_grad():
        module[1].running_mean.normal_()
        module[1].running_var.fill_(1e-4)
        module[1].bias.normal_()
    x = torch.randn(3, 8)
    model = SparseModel.from_dense(module, x)
    assert len(model.plan()) > 2
    with torch.no_grad():
        torch.testing.assert_close(model(x), module(x), rtol=1e-5, atol=1e-5)

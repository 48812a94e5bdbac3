"""Small models that together use every operation of the format, and the judgement on a mutated one."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from model_files import small_model
from torch import Tensor, nn

from finepruning.engine import SparseModel
from finepruning.engine.cpu import CpuExecutor
from finepruning.engine.fuse import fuse
from finepruning.engine.plan import Plan
from finepruning.engine.reference import ReferenceExecutor
from finepruning.errors import ModelFileError
from finepruning.sparse.graph import product
from finepruning.sparse.storage import StoredModel, load, save

RUN_LIMIT = 1 << 21  # elements of all values of a plan that is run, and of the weights it uses


class Convolutions(nn.Module):
    """Every operation on maps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8)
        self.gate = nn.Conv2d(8, 8, 1)
        self.wide = nn.Conv2d(16, 8, (3, 2), groups=4)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.norm(self.stem(x)))
        y = F.hardswish(self.deep(x)) + x
        y = y * torch.sigmoid(self.gate(F.adaptive_avg_pool2d(y, 1)))
        y = torch.cat([F.max_pool2d(y, 3, 2, ceil_mode=True), F.avg_pool2d(F.gelu(y), 2, ceil_mode=True)], 1)
        return self.head(F.silu(self.wide(y)).mean((2, 3)))


class Attention(nn.Module):
    """What transformers add."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.norm = nn.LayerNorm(8)
        self.mix, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        parts = self.mix(self.norm(x)).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(*parts.unbind(0)).transpose(1, 2).flatten(2))
        return self.head(F.gelu(x.roll(1, 1))[:, 0])


def write_all(folder: Path) -> list[Path]:
    """One directory for each model."""
    directories = [folder / name for name in ("by_hand", "convolutions", "attention")]
    save(small_model(), directories[0])
    torch.manual_seed(0)
    networks = ((Convolutions(), torch.float32), (Attention(), torch.bfloat16))
    for directory, (network, dtype) in zip(directories[1:], networks, strict=True):
        with torch.no_grad():
            for layer in network.modules():
                if isinstance(layer, (nn.Conv2d, nn.Linear)):
                    layer.weight *= torch.rand_like(layer.weight) < 0.3
        model = SparseModel.from_dense(network, torch.zeros(1, 3, 12, 8), dtype=dtype, classes=None)
        model.save_pretrained(directory)
    return directories


def judge(path: Path) -> str:
    """Load a directory: "refused" with the typed error, or "accepted", then run if it is small enough.

    A PyTorch operation that cannot work on what reaches it, which its shapes do not tell, is "refused, run".

    Raises:
        AssertionError: an accepted model cannot be planned or run, or not with the right result. Anything
            else than `ModelFileError` from the loader comes through.
    """
    try:
        stored = load(path)
    except ModelFileError as error:
        message = str(error)
    else:
        return _use(stored)
    assert len(message.splitlines()) == 1, f"more than one line: {message}"
    assert len(message) < 2000, f"a message of {len(message)} characters"
    return "refused"


def _use(stored: StoredModel) -> str:
    plan = fuse(stored.graph, stored.tensors, 2)
    assert plan.values[plan.output].shape[0] == 2
    size = sum(product(value.shape) for value in plan.values.values())
    size += sum(product(tensor.shape) for tensor in stored.tensors.values())
    if size > RUN_LIMIT:
        return "accepted"
    try:
        _run(plan)
    except ModelFileError:
        return "refused, run"
    return "accepted, run"


def _run(plan: Plan) -> None:
    shape = plan.values[plan.input].shape
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = ReferenceExecutor(plan)(x)
    actual = CpuExecutor(plan)(x)
    assert actual.shape == expected.shape
    # Values near the limit of float32 overflow in one order of additions and not in another.
    if not bool(expected.isfinite().all()):
        return
    scale = max(1e-3, float(expected.abs().max()))
    try:
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3 * scale)
    except AssertionError:
        # Where float32 itself cannot tell the result, being as far from float64 as the reference is will do.
        exact = _in_float64(plan, x)
        if not float((actual - exact).abs().max()) <= 2 * float((expected - exact).abs().max()):
            raise


def _in_float64(plan: Plan, x: Tensor) -> Tensor:
    executor = ReferenceExecutor(plan)
    executor._tensors = {
        name: tensor.double() if tensor.is_floating_point() else tensor
        for name, tensor in executor._tensors.items()
    }
    return executor(x.double())

"""The dense twin of a pruned model: the same network with its zeros stored, as other runtimes take it."""

from __future__ import annotations

import contextlib
import io
import logging
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from finepruning.engine.activations import ACTIVATIONS
from finepruning.engine.fuse import fuse
from finepruning.engine.operations import run_dense
from finepruning.engine.plan import Plan, Step
from finepruning.sparse import aten
from finepruning.sparse.csr import CSR
from finepruning.sparse.storage import StoredModel


class DenseTwin:
    """A dense network for one input shape, in every form a peer wants.

    Attributes:
        module: in eval mode, on the device and of the dtype to run in; BatchNorm already folded, as the
            sparse engine and every inference runtime do.
        example: input the module takes; its batch is the one measured.
        folder: where `onnx` writes.
    """

    def __init__(self, module: nn.Module, example: Tensor, folder: Path) -> None:
        self.module = module
        self.example = example
        self.folder = folder

    @property
    def weight_bytes(self) -> int:
        """Bytes of parameters and buffers together."""
        return sum(t.nbytes for t in (*self.module.parameters(), *self.module.buffers()))

    def onnx(self) -> Path:
        """The network as a float32 ``.onnx`` file, exported at the first call.

        The batch is fixed, so that every runtime can specialise as far as it is able to.
        """
        path = self.folder / f"dense_{self.example.shape[0]}.onnx"
        if not path.exists():
            module, example = self.module, self.example
            if example.dtype != torch.float32:
                import copy

                module, example = copy.deepcopy(module).float(), example.float()
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                torch.onnx.export(module, (example,), str(path), dynamo=True, verbose=False)
        return path


class PlanModule(nn.Module):
    """A plan with its weights stored densely, as a plain network that PyTorch can run, compile and export.

    Args:
        plan: what to run; its batch is the only one the module takes.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self._names: dict[str, str] = {}
        for step in plan.steps:
            if step.weight is not None:
                dense = step.weight.to_dense() if isinstance(step.weight, CSR) else step.weight
                self._store(f"{step.name}.weight", dense)
            if step.bias is not None:
                self._store(f"{step.name}.bias", step.bias)
        for name, tensor in plan.tensors.items():
            self._store(f"constant:{name}", tensor)

    def _store(self, name: str, tensor: Tensor) -> None:
        attribute = f"tensor_{len(self._names)}"
        self._names[name] = attribute
        if tensor.is_floating_point():
            self.register_parameter(attribute, nn.Parameter(tensor.clone(), requires_grad=False))
        else:
            self.register_buffer(attribute, tensor.clone())

    def _stored(self, name: str) -> Tensor | None:
        attribute = self._names.get(name)
        return None if attribute is None else getattr(self, attribute)

    def forward(self, x: Tensor) -> Tensor:
        values = {self.plan.input: x}
        for step in self.plan.steps:
            values[step.output] = self._run(step, values)
        return values[self.plan.output]

    def profile(self, x: Tensor) -> list[tuple[str, float]]:
        """Seconds of every step in execution order, as (step name, seconds), on the CPU."""
        values, times = {self.plan.input: x}, []
        for step in self.plan.steps:
            start = time.perf_counter()
            values[step.output] = self._run(step, values)
            times.append((step.name, time.perf_counter() - start))
        return times

    def _run(self, step: Step, values: dict[str, Tensor]) -> Tensor:
        if step.op == "aten":
            constants = {name: getattr(self, self._names[f"constant:{name}"]) for name in self.plan.tensors}
            out = aten.call(step.attrs, values, constants, values[self.plan.input].device)
        else:
            weight, bias = self._stored(f"{step.name}.weight"), self._stored(f"{step.name}.bias")
            out = run_dense(step.op, step.attrs, [values[name] for name in step.inputs], weight, bias)
        if step.residual is not None:
            out = out + values[step.residual]
        return ACTIVATIONS[step.activation](out)


def dense_twin(stored: StoredModel, x: Tensor, folder: Path) -> DenseTwin:
    """The dense twin of a stored model for inputs like ``x``, on its device and in its dtype."""
    plan = fuse(stored.graph, stored.tensors, x.shape[0], x.dtype)
    module = PlanModule(plan).eval().to(device=x.device, dtype=x.dtype)
    return DenseTwin(module, x, folder)

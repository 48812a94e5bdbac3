"""Runs a plan on a GPU: fixed memory, kernels chosen beforehand, one captured CUDA graph."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from finepruning.engine import cuda_choice, cuda_layout
from finepruning.engine.plan import Plan, Step, StepReport
from finepruning.engine.reference import fused_names
from finepruning.errors import DeviceError, InputError
from finepruning.sparse.csr import CSR

try:
    from finepruning.engine import cuda_steps
except ModuleNotFoundError as missing:
    if missing.name != "triton":
        raise
    raise DeviceError("running on a GPU needs triton: pip install triton") from None

# Capture is process-wide state of the allocator: one executor is built at a time.
_building = threading.Lock()


class CudaExecutor:
    """Runs one plan on one GPU.

    Building it converts the weights (shared between executors of one model), chooses a kernel for each
    layer, lays out the arena and captures a CUDA graph. A call copies the input, replays the graph and
    copies the output on the caller's current stream; it neither allocates (but for the returned tensor)
    nor waits for the device. Calls from several threads and streams run one after another.

    float32 convolutions and products on tensor cores follow ``torch.backends.cudnn.allow_tf32`` and
    ``torch.backends.cuda.matmul.allow_tf32`` as they are when the executor is built; the sparse kernels
    always compute in IEEE float32.

    Args:
        plan: what to run; its values' dtypes are those of the computation.
        device: a CUDA device. "cpu" works under Triton's interpreter (``TRITON_INTERPRET=1``), without a
            graph, to test plans.
        methods: layer name -> "sparse", "expand" or "dense", overriding the choice for that layer.

    Raises:
        DeviceError: the device does not exist, or the plan does not fit its memory.
    """

    def __init__(
        self,
        plan: Plan,
        device: torch.device | str,
        *,
        methods: Mapping[str, cuda_choice.Method] | None = None,
    ) -> None:
        self.device = _device(device)
        self._lock = threading.Lock()
        self._on_gpu = self.device.type == "cuda"
        gpu = cuda_choice.Gpu.of(self.device)
        tf32 = bool(torch.backends.cudnn.allow_tf32)
        half = any(value.dtype.itemsize == 2 for value in plan.values.values())
        dense_order: cuda_layout.Order = "channels_last" if half else "contiguous"
        candidates = cuda_choice.layers(plan, tf32=tf32 and not half)
        times = {layer.name: cuda_choice.seconds(layer, gpu) for layer in candidates}
        choices = cuda_choice.choose(candidates, times)
        for name, method in (methods or {}).items():
            choices[name] = replace(choices[name], method=method)
        with _building, self._memory_errors(plan, choices), self._guard():
            self._build(plan, choices, dense_order)
            if self._on_gpu:
                self._capture()

    def _build(
        self, plan: Plan, choices: Mapping[str, cuda_choice.Choice], dense_order: cuda_layout.Order
    ) -> None:
        assert dense_order != "batch_innermost"
        placed = cuda_layout.placements(plan, choices, dense_order)
        scratch = {
            step.name: cuda_steps.scratch_bytes(step, choices.get(step.name), placed[step.output].dtype)
            for step in plan.steps
        }
        offsets, total = cuda_layout.arena(plan, placed, scratch)
        arena = torch.empty(total, dtype=torch.uint8, device=self.device)
        source = placed[plan.input]
        # Zeros once: calls write inside the border only.
        own = torch.zeros(source.numel, dtype=source.dtype, device=self.device)
        memory = {plan.input: own.view(torch.uint8)}
        memory |= {name: arena[offset:] for name, offset in offsets.items()}

        def typed(name: str, numel: int, dtype: torch.dtype) -> Tensor:
            return memory[name][: numel * dtype.itemsize].view(dtype)

        values = {
            name: placement.view(typed(placement.source or name, placement.numel, placement.dtype))
            for name, placement in placed.items()
        }
        context = cuda_steps.Context(
            values=values,
            placed=placed,
            scratch={
                step.name: typed(
                    f"scratch:{step.name}",
                    scratch[step.name] // placed[step.output].dtype.itemsize,
                    placed[step.output].dtype,
                )
                for step in plan.steps
                if scratch[step.name]
            },
            tensors={name: _constant(tensor, plan, self.device) for name, tensor in plan.tensors.items()},
            device=self.device,
            dense_order=dense_order,
        )
        self._steps = [cuda_steps.build(step, choices.get(step.name), context) for step in plan.steps]
        self._input, self._output = values[plan.input], values[plan.output]
        self._arena_bytes = total + own.nbytes
        self._report = [
            _row(step, built, plan, choices.get(step.name))
            for step, built in zip(plan.steps, self._steps, strict=True)
        ]

    def _run_steps(self) -> None:
        for step in self._steps:
            step.launch()

    def _capture(self) -> None:
        """Run once to compile kernels and load libraries, then record the same launches."""
        before = torch.cuda.memory_reserved(self.device)
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream), torch.no_grad():
            self._run_steps()
        stream.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
            self._run_steps()
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._done.record(stream)
        torch.cuda.empty_cache()
        self._graph_bytes = max(torch.cuda.memory_reserved(self.device) - before, 0)

    def __call__(self, x: Tensor) -> Tensor:
        """Run the plan on ``x``: shape, dtype and device of the plan's input, any strides.

        Raises:
            InputError: ``x`` does not match the plan. DeviceError: no memory for the result.
        """
        if x.shape != self._input.shape or x.dtype != self._input.dtype or x.device != self.device:
            raise InputError(
                f"this plan takes {tuple(self._input.shape)} {self._input.dtype} on {self.device}, "
                f"not {tuple(x.shape)} {x.dtype} on {x.device}"
            )
        with self._lock, torch.no_grad(), self._guard():
            if not self._on_gpu:
                self._input.copy_(x)
                self._run_steps()
                return self._output.clone(memory_format=torch.contiguous_format)
            if torch.cuda.is_current_stream_capturing():
                # A graph cannot be replayed inside another: become part of the caller's.
                self._input.copy_(x)
                self._run_steps()
                return self._output.clone(memory_format=torch.contiguous_format)
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(self._done)
            self._input.copy_(x, non_blocking=True)
            self._graph.replay()
            try:
                return self._output.clone(memory_format=torch.contiguous_format)
            except torch.OutOfMemoryError as error:
                raise DeviceError(
                    f"{self.device}: no memory for the result, {self._output.nbytes} bytes"
                ) from error
            finally:
                self._done.record(stream)

    def _guard(self) -> torch.cuda.device | nullcontext[None]:
        return torch.cuda.device(self.device) if self._on_gpu else nullcontext()

    @contextmanager
    def _memory_errors(self, plan: Plan, choices: Mapping[str, cuda_choice.Choice]) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as error:
            free, total = torch.cuda.mem_get_info(self.device)
            weights = sum(_weight_bytes(step, choices.get(step.name)) for step in plan.steps)
            activations = sum(
                value.dtype.itemsize * torch.Size(value.shape).numel() for value in plan.values.values()
            )
            mib = 1 << 20
            raise DeviceError(
                f"{self.device} is out of memory: batch {plan.batch} needs about {weights // mib + 1} MiB "
                f"for weights, at most {activations // mib + 1} MiB for activations, and library workspaces; "
                f"{free // mib} of {total // mib} MiB are free. Use a smaller batch or free memory"
            ) from error

    def report(self) -> list[StepReport]:
        return list(self._report)

    @property
    def arena_bytes(self) -> int:
        """Bytes of activations and scratch."""
        return self._arena_bytes


def _device(device: torch.device | str) -> torch.device:
    device = torch.device(device)
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return device
    if device.type != "cuda" or not torch.cuda.is_available():
        raise DeviceError(f"{device}: there is no such CUDA device; use device cpu")
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise DeviceError(f"cuda:{index}: this machine has {torch.cuda.device_count()} CUDA device(s)")
    return torch.device("cuda", index)


def _constant(tensor: Tensor, plan: Plan, device: torch.device) -> Tensor:
    """A stored tensor on the device, floating-point ones in the plan's type."""
    dtype = plan.values[plan.input].dtype
    return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)


def _weight_bytes(step: Step, choice: cuda_choice.Choice | None) -> int:
    if step.weight is None:
        return 0
    if isinstance(step.weight, CSR):
        dense = choice is not None and choice.method == "dense"
        return (
            step.weight.rows * step.weight.columns * step.weight.values.itemsize
            if dense
            else step.weight.nbytes
        )
    return step.weight.nbytes


def _row(step: Step, built: cuda_steps.Built, plan: Plan, choice: cuda_choice.Choice | None) -> StepReport:
    nnz = size = None
    if isinstance(step.weight, CSR):
        nnz, size = step.weight.nnz, step.weight.rows * step.weight.columns
    elif step.weight is not None:
        nnz, size = int(step.weight.count_nonzero()), step.weight.numel()
    return StepReport(
        name=step.name,
        op=step.op,
        fused=fused_names(step),
        kernel=built.kernel,
        shape=plan.values[step.output].shape,
        nnz=nnz,
        size=size,
        bytes=built.nbytes,
        why_dense=None if choice is None else choice.why_dense,
    )

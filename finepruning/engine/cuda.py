"""Runs a plan on a GPU: fixed memory, kernels chosen beforehand, one captured CUDA graph."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from finepruning.engine import cuda_choice
from finepruning.engine.plan import Plan, StepReport, keeps_images_apart
from finepruning.errors import DeviceError, InputError

try:
    from finepruning.engine import cuda_graph, cuda_measure, cuda_program
except ModuleNotFoundError as missing:
    if missing.name != "triton":
        raise
    raise DeviceError("running on a GPU needs triton: pip install triton") from None

MIB = 1 << 20


class CudaExecutor:
    """Runs one plan on one GPU.

    Building it converts the weights (shared between executors of one model), chooses a kernel for each
    layer, lays out the arena and captures a CUDA graph. A call copies the input, replays the graph and
    copies the output on the caller's current stream; it neither allocates (but for the returned tensor)
    nor waits for the device. Calls from several threads and streams run one after another.

    Inside a CUDA graph that the caller captures, a call becomes part of it. That graph then uses this
    executor's memory: keep the model alive and do not run both at once.

    float32 convolutions and products on tensor cores follow ``torch.backends.cudnn.allow_tf32`` and
    ``torch.backends.cuda.matmul.allow_tf32`` (or their ``fp32_precision``) as they are when the executor
    is built; the sparse kernels always compute in IEEE float32.

    Args:
        plan: what to run; its values' dtypes are those of the computation.
        device: a CUDA device. "cpu" works under Triton's interpreter (``TRITON_INTERPRET=1``), without a
            graph, to test plans.
        methods: layer name -> "sparse", "expand" or "dense", overriding the choice for that layer.
        fused: whether layers in ``methods`` that can run our convolution on tensor cores do, not cuDNN's.
        measure: time layers and network on this device where that has not been done yet; otherwise a model
            of the device decides.

    Raises:
        DeviceError: the device does not exist, the plan does not fit its memory, or the caller is
            capturing a graph.
    """

    def __init__(
        self,
        plan: Plan,
        device: torch.device | str,
        *,
        methods: Mapping[str, cuda_choice.Method] | None = None,
        fused: bool = False,
        measure: bool = True,
    ) -> None:
        self.device = _device(device)
        self._lock = threading.Lock()
        self._on_gpu = _is_gpu(self.device)
        self._pads = keeps_images_apart(plan)
        layout: cuda_program.Layout | None = None
        # Made outside inference mode: inference tensors could not be written to by calls outside it.
        with (
            cuda_graph.recording,
            torch.inference_mode(False),
            torch.no_grad(),
            self._guard(),
            self._memory_errors(plan, lambda: layout),
        ):
            if self._on_gpu and torch.cuda.is_current_stream_capturing():
                raise DeviceError(
                    f"a model cannot be prepared while a CUDA graph is captured: call it once with batch "
                    f"{plan.batch} before the capture"
                )
            choices, order = self._choose(plan, methods or {}, fused, measure)
            layout = cuda_program.lay_out(plan, choices, order)
            self._choices = choices
            self._program = cuda_program.Program(plan, choices, layout, self.device)
            self._enqueue = self._program.run
            self._bytes = layout.arena_bytes + layout.input_bytes
            if self._on_gpu:
                recorded = cuda_graph.Recording(self.device, self._program.run)
                self._enqueue = recorded.replay
                self._bytes += recorded.pool_bytes
                self._done: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._done.record(torch.cuda.current_stream(self.device))
        self._report = self._program.report()

    def _choose(
        self, plan: Plan, methods: Mapping[str, cuda_choice.Method], fused: bool, measure: bool
    ) -> tuple[dict[str, cuda_choice.Choice], cuda_measure.Order]:
        half = any(value.dtype.itemsize == 2 for value in plan.values.values())
        convolution = torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
        product = torch.backends.cuda.matmul.fp32_precision == "tf32"
        # Tensor cores read channels last; the float32 kernels of cuDNN are at home in PyTorch's order.
        order: cuda_measure.Order = "channels_last" if half or convolution else "contiguous"
        candidates = cuda_choice.layers(plan, tf32_convolution=convolution, tf32_product=product)
        everything = all(layer.name in methods for layer in candidates)
        planner = cuda_measure.planner(self.device, order, measure=measure and not everything)
        choices = planner.choices(plan, candidates)
        fusible = {layer.name for layer in candidates if layer.fusible and order == "channels_last"}
        for name, method in methods.items():
            choices[name] = replace(
                choices[name], method=method, why_dense=None, fused=fused and name in fusible
            )
        return choices, order

    def __call__(self, x: Tensor) -> Tensor:
        """Run the plan on ``x``: shape, dtype and device of the plan's input, any strides.

        Fewer images than the plan's are padded where no operation mixes them (`plan.keeps_images_apart`).

        Raises:
            InputError: ``x`` does not match the plan. DeviceError: no memory for the result.
        """
        rows = x.shape[0] if x.dim() else 0
        target = self._program.input
        fits = x.dim() == target.dim() and x.shape[1:] == target.shape[1:]
        fits = fits and (rows == target.shape[0] or (self._pads and 0 < rows < target.shape[0]))
        if not fits or x.dtype != target.dtype or x.device != self.device:
            raise InputError(
                f"this plan takes {tuple(target.shape)} {target.dtype} on {self.device}, "
                f"not {tuple(x.shape)} {x.dtype} on {x.device}"
            )
        with self._lock, torch.no_grad(), self._guard():
            if not self._on_gpu or torch.cuda.is_current_stream_capturing():
                # A graph cannot be replayed inside another: become part of the caller's.
                target[:rows].copy_(x)
                self._program.run()
                return self._result(rows)
            stream: Any = torch.cuda.current_stream(self.device)
            stream.wait_event(self._done)
            try:
                target[:rows].copy_(x, non_blocking=True)
                self._enqueue()
                return self._result(rows)
            except torch.OutOfMemoryError as error:
                raise DeviceError(
                    f"{self.device}: no memory for the result, {self._program.output.nbytes} bytes"
                ) from error
            finally:
                self._done.record(stream)

    @property
    def input(self) -> Tensor:
        """The value that `replay` reads, ``[plan's batch, ...]``; a call fills it."""
        return self._program.input

    @property
    def output(self) -> Tensor:
        """The value that `replay` leaves, ``[plan's batch, ...]``; the next call overwrites it."""
        return self._program.output

    def replay(self) -> None:
        """Run on what the last call left as input, without copies: for measuring.

        Not ordered with calls on other streams.
        """
        with torch.no_grad(), self._guard():
            self._enqueue()

    def _result(self, rows: int) -> Tensor:
        output = self._program.output
        part = output if rows == self._program.input.shape[0] else output[:rows]
        return part.clone(memory_format=torch.contiguous_format)

    def __del__(self) -> None:
        # Calls may have run on streams that the allocator knows nothing of: memory is free only when the
        # last of them is done.
        done = getattr(self, "_done", None)
        if done is not None:
            with contextlib.suppress(Exception):  # the interpreter may be shutting down
                done.synchronize()

    def _guard(self) -> torch.cuda.device | nullcontext[None]:
        return torch.cuda.device(self.device) if self._on_gpu else nullcontext()

    @contextmanager
    def _memory_errors(self, plan: Plan, layout: Any) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as error:
            free, total = torch.cuda.mem_get_info(self.device)
            known = layout()
            needs = (
                "more memory than there is to measure its layers"
                if known is None
                else f"{known.weight_bytes // MIB + 1} MiB for weights, "
                f"{(known.arena_bytes + known.input_bytes) // MIB + 1} MiB for activations, and workspaces "
                "of cuDNN and cuBLAS"
            )
            raise DeviceError(
                f"{self.device} is out of memory: batch {plan.batch} needs {needs}; {free // MIB} of "
                f"{total // MIB} MiB are free. Use a smaller batch or free memory"
            ) from error

    def report(self) -> list[StepReport]:
        """One row a step of the plan, in order."""
        return list(self._report)

    @property
    def arena_bytes(self) -> int:
        """Bytes of activations, scratch and, on a GPU, the graph's own pool (library workspaces)."""
        return self._bytes


def _is_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


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

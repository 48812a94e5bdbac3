"""`SparseModel`: a captured or loaded network that runs on its pruned weights."""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from finepruning.engine.capture import capture
from finepruning.engine.fuse import fuse
from finepruning.engine.hub import is_repository, pull, push
from finepruning.engine.plan import Executor, Plan, keeps_images_apart
from finepruning.engine.plan_check import check
from finepruning.engine.plan_report import PlanReport
from finepruning.errors import ArgumentError, DeviceError, InputError
from finepruning.sparse.csr import CSR, VALUE_DTYPES
from finepruning.sparse.shapes import Stored, infer
from finepruning.sparse.storage import StoredModel, load, save

MAX_EXECUTORS = 8  # batch sizes whose plans are kept; the weights are shared between them


class SparseModel(nn.Module):
    """Inference-only network on CSR weights: ``model(x) -> logits`` for any batch size.

    Made by `from_dense` or `from_pretrained`. Moves between devices like any module (``.to("cuda")``); the
    plan for a batch size is made at its first call on a device. Safe to call from several threads.

    Attributes:
        classes: names in the order of the logits, or None.
        preprocessing: how to make an input of an image, or None.
        provenance: where the model came from, or None.
        input_shape: shape of one input without batch, such as ``(3, 224, 224)``.
    """

    def __init__(self, stored: StoredModel) -> None:
        super().__init__()
        self._stored = stored
        self.classes = stored.classes
        self.preprocessing = stored.preprocessing
        self.provenance = stored.provenance
        self.input_shape = stored.graph.input_shape
        self._reset()
        # Follows .to(), .cuda() and .half(), of this module or of one that contains it.
        self.register_buffer("_anchor", torch.empty(0, dtype=_value_dtype(stored.tensors)), persistent=False)
        self._anchor: Tensor
        self.eval()

    def _reset(self) -> None:
        self._executors: OrderedDict[int, Executor] = OrderedDict()
        self._building: dict[int, threading.Lock] = {}
        self._lock = threading.Lock()
        self._pads: bool | None = None  # whether batches may be padded; None: not known yet

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        device: str | torch.device = "cpu",
        dtype: torch.dtype | str | None = None,
        *,
        revision: str | None = None,
        token: str | None = None,
    ) -> SparseModel:
        """Load a model directory; needs neither the network's class nor torchvision.

        Args:
            path: directory with config.json and model.safetensors, or, where there is no such directory,
                ``"user/name"`` on the Hugging Face Hub (needs huggingface_hub). device: where to run.
            dtype: of the weights' values, float32, float16 or bfloat16; None keeps what the file has.
            revision: branch, tag or commit on the Hub. token: for private models there.

        Raises:
            ModelFileError: the directory holds no valid model. DeviceError: there is no such device.
            HubError: the Hub does not give the model. ArgumentError: a revision of a directory, or
                huggingface_hub is not installed.
        """
        place = _device(device)
        wanted = _dtype(dtype)
        if is_repository(path):
            path = pull(str(path), revision=revision, token=token)
        elif revision is not None:
            raise ArgumentError(f"revision goes with a model on the Hub, but {path} is a local path")
        stored = load(path)
        if wanted is not None:
            stored = _converted(stored, wanted)
        return cls(stored).to(place)

    @classmethod
    def from_dense(
        cls,
        module: nn.Module,
        example_input: Tensor,
        *,
        preprocessing: Mapping[str, Any] | None = None,
        classes: Sequence[str] | None = None,
        provenance: Mapping[str, Any] | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> SparseModel:
        """Capture a network whose pruned weights are zero, in evaluation mode.

        Args:
            module: float32 network that takes and returns one tensor; it is left as it was.
            example_input: float32 ``[batch, ...]``; its shape (any batch) and device become the model's.
            preprocessing, provenance: JSON objects, stored with the model.
            classes: one name for each logit, stored with the model.
            dtype: of the weights' values, float32 (the default), float16 or bfloat16.

        Raises:
            CaptureError: the network cannot be traced, or its batch size is fixed.
            ArgumentError: classes do not fit the network's output, or a description is no JSON.
        """
        if not isinstance(module, nn.Module):
            raise ArgumentError(f"from_dense takes a torch.nn.Module, not {type(module).__name__}")
        if not isinstance(example_input, Tensor) or example_input.dim() < 2:
            raise InputError(
                "example_input must be a tensor of shape [batch, ...], such as torch.zeros(1, 3, 224, 224)"
            )
        if example_input.dtype is not torch.float32 or 0 in example_input.shape[1:]:
            raise InputError(
                "example_input must be float32 without empty dimensions, not "
                f"{_short(example_input.dtype)} of shape {list(example_input.shape)}"
            )
        graph, tensors = capture(module, tuple(example_input.shape[1:]), _dtype(dtype))
        output = infer(graph, tensors, 1)[graph.output][0]
        if classes is not None and (len(output) != 2 or len(classes) != output[1]):
            raise ArgumentError(
                f"{len(classes)} classes do not fit a network that returns {list(output[1:])} an input"
            )
        names = None if classes is None else tuple(str(name) for name in classes)
        stored = StoredModel(
            graph, tensors, names, _plain(preprocessing, "preprocessing"), _plain(provenance, "provenance")
        )
        return cls(stored).to(example_input.device)

    @property
    def stored(self) -> StoredModel:
        """What `save_pretrained` writes."""
        return self._stored

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write config.json and model.safetensors into the directory ``path``.

        Raises:
            CaptureError: the network uses an operation that files may not name.
            ArgumentError: ``path`` cannot be written.
        """
        save(self._stored, path)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        report: Mapping[str, Any] | str | os.PathLike[str] | None = None,
        license: str | None = None,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        token: str | None = None,
    ) -> str:
        """Publish the model on the Hugging Face Hub, with a card (README.md) that states its figures.

        Args:
            repo_id: ``"user/name"``; made where it does not exist.
            report: of the run that made the model (its directory, its report.json, or the content of that),
                for the accuracies on the card.
            license: identifier for the card, such as "apache-2.0". private: of a new repository; None for the
                account's default.
            revision: branch to write to; None for main. commit_message, token: as in huggingface_hub.

        Returns:
            Address of the commit.

        Raises:
            ArgumentError: huggingface_hub is not installed, or the report is of another model.
            CaptureError: as `save_pretrained`. HubError: the Hub cannot be reached, or refuses.
        """
        return push(
            self._stored,
            repo_id,
            report=report,
            license=license,
            private=private,
            revision=revision,
            commit_message=commit_message,
            token=token,
        )

    def to_dense(self) -> dict[str, Tensor]:
        """All tensors by name with zeros filled in, float32 on the CPU.

        Names are those of the original parameters (``features.0.weight``). Batch norms that were folded
        into a layer have no entry; their effect is in the layer's weight and bias.
        """
        dense = {}
        for name, stored in self._stored.tensors.items():
            tensor = stored.to_dense() if isinstance(stored, CSR) else stored.clone()
            dense[name] = tensor.float() if tensor.is_floating_point() else tensor
        return dense

    @property
    def device(self) -> torch.device:
        """Where the model runs and expects its inputs."""
        return self._anchor.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights' values."""
        return self._anchor.dtype

    @property
    def input_dtype(self) -> torch.dtype:
        """Type of inputs and results: float32 on the CPU, the weights' on other devices."""
        return torch.float32 if self.device.type == "cpu" else self.dtype

    def plan(self, batch: int = 1) -> PlanReport:
        """What runs for inputs of this batch size: kernels, shapes, bytes, and why a layer runs dense."""
        if type(batch) is not int or batch < 1:
            raise ArgumentError(f"batch must be an integer of at least 1, not {batch!r}")
        executor = self._executor(batch)
        return PlanReport(executor.report(), self._recorded(batch), str(self.device), executor.arena_bytes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch.

        Args:
            x: ``[batch, *input_shape]`` of `input_dtype` on the model's device, any strides.

        Raises:
            InputError: another type, rank, shape, dtype or device.
        """
        self._check(x)
        if x.shape[0] == 0:
            shape = infer(self._stored.graph, self._stored.tensors, 1)[self._stored.graph.output][0]
            return x.new_empty((0, *shape[1:]))
        return self._executor(x.shape[0])(x)

    def _check(self, x: Tensor) -> None:
        expected = f"[batch, {', '.join(str(extent) for extent in self.input_shape)}]"
        if not isinstance(x, Tensor):
            raise InputError(f"the model takes a tensor of shape {expected}, not {type(x).__name__}")
        if x.is_nested or x.layout is not torch.strided:
            kind = "nested" if x.is_nested else str(x.layout).removeprefix("torch.")
            raise InputError(f"the model takes a plain tensor of shape {expected}, not a {kind} one")
        if x.dim() != len(self.input_shape) + 1:
            hint = (
                "; add the batch dimension with x.unsqueeze(0)" if tuple(x.shape) == self.input_shape else ""
            )
            raise InputError(
                f"the model takes {len(self.input_shape) + 1} dimensions {expected}, "
                f"not {x.dim()}: {list(x.shape)}{hint}"
            )
        if tuple(x.shape[1:]) != self.input_shape:
            what = "channels" if x.shape[1] != self.input_shape[0] else "a size"
            raise InputError(
                f"the model takes shape {expected}; the input has {what} that it does not: {list(x.shape)}"
            )
        if x.dtype is not self.input_dtype:
            raise InputError(
                f"the model takes {_short(self.input_dtype)}, not {_short(x.dtype)}; convert with "
                f"x.to(torch.{_short(self.input_dtype)})"
            )
        if x.device != self.device:
            raise InputError(
                f"the model is on {self.device}, the input on {x.device}; move one with .to(...)"
            )

    def _executor(self, batch: int) -> Executor:
        """The executor for a batch size, made once however many threads ask for it."""
        batch = self._recorded(batch)
        with self._lock:
            executor = self._executors.get(batch)
            if executor is not None:
                self._executors.move_to_end(batch)
                return executor
            building = self._building.setdefault(batch, threading.Lock())
        with building:
            with self._lock:
                if batch in self._executors:
                    return self._executors[batch]
            executor = make_executor(self._plan(batch), self.device, self._plan)
            with self._lock:
                self._executors[batch] = executor
                while len(self._executors) > MAX_EXECUTORS:
                    self._executors.popitem(last=False)
                self._building.pop(batch, None)
            return executor

    def _plan(self, batch: int) -> Plan:
        return fuse(self._stored.graph, self._stored.tensors, batch, self.input_dtype)

    def _recorded(self, batch: int) -> int:
        """The batch size of the plan for ``batch`` images: itself, or on a GPU its bucket."""
        if self.device.type != "cuda":
            return batch
        from finepruning.engine.cuda_batch import bucket

        if self._pads is None:  # batch 2 tells a batch dimension from one of size 1
            self._pads = keeps_images_apart(self._plan(2))
        return bucket(batch) if self._pads else batch

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SparseModel:
        device, dtype = self.device, self.dtype
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.dtype is not dtype:
            self._stored = _converted(self._stored, self.dtype)
        if (self.device, self.dtype) != (device, dtype):
            self._reset()
        return self

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in ("_executors", "_building", "_lock"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._reset()

    def extra_repr(self) -> str:
        weights = [stored for stored in self._stored.tensors.values() if isinstance(stored, CSR)]
        size = sum(stored.rows * stored.columns for stored in weights)
        kept = sum(stored.nnz for stored in weights)
        shape = "x".join(str(extent) for extent in self.input_shape)
        density = f", density {kept / size:.3f}" if size else ""
        count = len(self._stored.graph.nodes)
        return f"input {shape}, {count} operations, {len(weights)} sparse layers{density}"


def make_executor(plan: Plan, device: torch.device, replan: Callable[[int], Plan] | None = None) -> Executor:
    """The device's executor for a plan, which is checked first.

    ``replan`` gives the same plan for another batch size, which lets a large batch run in chunks.

    Raises:
        ArgumentError: the plan is inconsistent. DeviceError: models do not run on this device.
    """
    check(plan)
    if device.type == "cpu":
        from finepruning.engine.cpu_slices import cpu_executor

        return cpu_executor(plan, replan)
    if device.type == "cuda":
        from finepruning.engine.cuda import CudaExecutor

        return CudaExecutor(plan, device)
    raise DeviceError(f"models run on cpu and cuda, not on {device}")


def _device(device: str | torch.device) -> torch.device:
    try:
        place = torch.device(device)
    except RuntimeError:
        raise DeviceError(f"{device!r} is not a device; use cpu, cuda or cuda:N") from None
    if place.type not in ("cpu", "cuda"):
        raise DeviceError(f"models run on cpu and cuda, not on {place}")
    if place.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count <= (place.index or 0):
            raise DeviceError(f"there is no {place}: PyTorch finds {count} CUDA devices; use device='cpu'")
    return place


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    wanted = getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype
    if wanted is not None and wanted not in VALUE_DTYPES:
        raise ArgumentError(f"dtype must be float32, float16 or bfloat16, not {dtype}")
    return wanted


def _value_dtype(tensors: Mapping[str, Stored]) -> torch.dtype:
    """Type of the sparse layers' values (float32 if there are none)."""
    return next(
        (stored.values.dtype for stored in tensors.values() if isinstance(stored, CSR)), torch.float32
    )


def _converted(stored: StoredModel, dtype: torch.dtype) -> StoredModel:
    """The same model with values of another type; what does not fit it is an error."""
    dtype = _dtype(dtype) or dtype
    tensors: dict[str, Stored] = {}
    for name, item in stored.tensors.items():
        if isinstance(item, CSR) and item.values.dtype is not dtype:
            values = item.values.to(dtype)
            if not bool(values.isfinite().all()):
                raise ArgumentError(
                    f"{name} holds values that {_short(dtype)} cannot represent; use bfloat16"
                )
            tensors[name] = CSR(values, item.col, item.rowptr, item.shape)
        else:
            tensors[name] = item
    return StoredModel(stored.graph, tensors, stored.classes, stored.preprocessing, stored.provenance)


def _plain(value: Mapping[str, Any] | None, name: str) -> dict[str, Any] | None:
    """A JSON copy, so that the file holds exactly what the model says."""
    if value is None:
        return None
    try:
        return dict(json.loads(json.dumps(dict(value), allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"{name} must be a JSON object: {error}") from None


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

"""The dense runtimes a pruned network is measured against, each prepared once and called like ours."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finepruning.bench.twin import DenseTwin
from finepruning.errors import ArgumentError, DeviceError

Call = Callable[[Tensor], Tensor]

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Peer:
    """One way to run the dense twin of a model.

    Attributes:
        name: as on the command line and in results.
        prepare: (twin, CPU threads) -> a call that takes the twin's example input and returns logits.
        package: distribution it needs beside PyTorch, else None.
        devices: device types it runs on. dtypes: arithmetic it offers.
        on_request: left out unless named, because preparing it takes long.
        sparse: it gains from zeros itself, so it does not count as a dense runtime.
    """

    name: str
    prepare: Callable[[DenseTwin, int], Call]
    package: str | None = None
    devices: tuple[str, ...] = ("cpu", "cuda")
    dtypes: tuple[torch.dtype, ...] = FLOATS
    on_request: bool = False
    sparse: bool = False

    @property
    def installed(self) -> bool:
        return self.package is None or importlib.util.find_spec(self.package) is not None


def _torch(twin: DenseTwin, threads: int) -> Call:
    module: Call = twin.module
    return module


def _torch_channels_last(twin: DenseTwin, threads: int) -> Call:
    module = copy.deepcopy(twin.module)
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def call(x: Tensor) -> Tensor:
        out: Tensor = module(x.contiguous(memory_format=torch.channels_last))
        return out

    return call


def _torch_compile(twin: DenseTwin, threads: int) -> Call:
    # The caller captures the graph, as it does for every peer.
    mode = "max-autotune-no-cudagraphs" if twin.example.is_cuda else None
    compiled: Call = torch.compile(twin.module, mode=mode)
    return compiled


def _onnxruntime(twin: DenseTwin, threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Its threads may spin while its own call runs, but not into the turn of the next runtime.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(twin.onnx()), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def _openvino(twin: DenseTwin, threads: int) -> Call:
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        # Unasked, it computes float32 models in bfloat16 on processors that have units for it.
        "INFERENCE_PRECISION_HINT": "f32" if twin.example.dtype == torch.float32 else "bf16",
    }
    compiled = openvino.Core().compile_model(str(twin.onnx()), "CPU", settings)
    request = compiled.create_infer_request()
    return lambda x: torch.from_numpy(request.infer({0: x.float().numpy()}, share_inputs=True)[0])


PEERS = {
    peer.name: peer
    for peer in (
        Peer("torch", _torch),
        Peer("torch_channels_last", _torch_channels_last),
        Peer("torch_compile", _torch_compile, on_request=True),
        Peer("onnxruntime", _onnxruntime, "onnxruntime", ("cpu",), (torch.float32,)),
        Peer("openvino", _openvino, "openvino", ("cpu",), (torch.float32, torch.bfloat16)),
    )
}


def choose(names: Sequence[str] | None, device: torch.device, dtype: torch.dtype) -> list[Peer]:
    """The peers named, or all that are installed and fit when ``names`` is None.

    Raises:
        ArgumentError: an unknown name, one whose package is not installed, or one without this dtype.
        DeviceError: one that cannot run on ``device``.
    """
    if names is None:
        return [
            peer
            for peer in PEERS.values()
            if not peer.on_request and peer.installed and device.type in peer.devices and dtype in peer.dtypes
        ]
    return [_checked(name, device, dtype) for name in dict.fromkeys(names)]


def _checked(name: str, device: torch.device, dtype: torch.dtype) -> Peer:
    if name not in PEERS:
        raise ArgumentError(f"--peers: unknown peer {name!r}; known are {', '.join(PEERS)}")
    peer = PEERS[name]
    if not peer.installed:
        raise ArgumentError(
            f"--peers: {name} needs the package {peer.package}; pip install 'finepruning[peers]'"
        )
    if device.type not in peer.devices:
        raise DeviceError(
            f"--peers: {name} is measured on {' and '.join(peer.devices)} only, not on {device.type}"
        )
    if dtype not in peer.dtypes:
        known = " and ".join(str(d).removeprefix("torch.") for d in peer.dtypes)
        raise ArgumentError(f"--peers: {name} is measured in {known} only; leave it out or change --dtype")
    return peer

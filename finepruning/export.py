"""Models in the forms that other tools read. They run the zeros as any other number: sparsity is lost."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finepruning.dense import DenseNetwork
from finepruning.engine import SparseModel
from finepruning.errors import ArgumentError, CaptureError, FinepruningError
from finepruning.sparse.storage import StoredModel, load

SUFFIXES = {"torch": ".pt2", "state_dict": ".safetensors", "onnx": ".onnx"}
TOLERANCE = 1e-4  # norm of the difference over norm of the output
_BATCHES = (1, 3)


class ExportMismatchError(FinepruningError):
    """The exported file gives other outputs than the model."""


def export(directory: Path, to: str, output: Path) -> dict[str, Any]:
    """Write a model directory's model as one file of another kind.

    Args:
        directory: of the model. output: the file; it is replaced at once, after it was checked.
        to: "torch" (a torch.export program: any batch, runs with torch alone), "state_dict" (dense weights
            by name as safetensors, norms folded) or "onnx" (any batch; input ``images``, output ``logits``;
            classes and preprocessing as JSON in the file's metadata).

    Returns:
        ``output``, ``to``, ``bytes``, ``model_bytes`` (of the directory), ``checked`` (what ran the file for
        comparison, None where nothing could) and ``relative_error`` (largest over batches 1 and 3).

    Raises:
        ArgumentError: an unknown kind, a missing package, or a file that cannot be written.
        ModelFileError: no valid model. ExportMismatchError: the file's outputs differ by more than 1e-4.
    """
    if to not in SUFFIXES:
        raise ArgumentError(f"--to: {to!r} is not one of {', '.join(SUFFIXES)}")
    if not output.absolute().parent.is_dir():
        raise ArgumentError(f"{output}: the folder {output.absolute().parent} does not exist")
    stored = load(directory)
    write = {"torch": _write_torch, "state_dict": _write_state_dict, "onnx": _write_onnx}[to]
    temporary = output.with_name(f".{output.name}.{os.getpid()}{SUFFIXES[to]}")
    try:
        checked, run = write(stored, temporary)
        error = None if run is None else _compare(SparseModel.from_pretrained(directory), run)
        if error is not None and not error <= TOLERANCE:
            raise ExportMismatchError(
                f"the exported file's outputs differ from the model's by {error:.2g} (relative norm, allowed "
                f"is {TOLERANCE:g}), so it was not kept; this is a defect worth reporting"
            )
        temporary.replace(output)
    except OSError as error:
        raise ArgumentError(f"{output}: cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)
    return {
        "output": str(output),
        "to": to,
        "bytes": output.stat().st_size,
        "model_bytes": sum(file.stat().st_size for file in directory.iterdir() if file.is_file()),
        "checked": checked,
        "relative_error": error,
    }


Run = Callable[[Tensor], Tensor]


def _write_torch(stored: StoredModel, path: Path) -> tuple[str, Run]:
    program = _program(stored)
    about = {"classes": stored.classes, "preprocessing": stored.preprocessing}
    content = io.BytesIO()  # PyTorch's own writer ends the process when the disk is full
    torch.export.save(program, content, extra_files={"finepruning.json": json.dumps(about)})
    path.write_bytes(content.getvalue())
    module = torch.export.load(path).module()
    return f"torch {torch.__version__}", lambda x: module(x)


def _write_state_dict(stored: StoredModel, path: Path) -> tuple[None, None]:
    from safetensors.torch import save

    path.write_bytes(save(SparseModel(stored).to_dense()))
    return None, None


def _write_onnx(stored: StoredModel, path: Path) -> tuple[str | None, Run | None]:
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ArgumentError(
            f"--to onnx needs the package {error.name}; pip install 'finepruning[peers]'"
        ) from error
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _program(stored),
            input_names=["images"],
            output_names=["logits"],
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    onnx.helper.set_model_props(
        proto,
        {"classes": json.dumps(stored.classes), "preprocessing": json.dumps(stored.preprocessing)},
    )
    onnx.save(proto, str(path))
    try:
        import onnxruntime
    except ImportError:
        return None, None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return (
        f"ONNX Runtime {onnxruntime.__version__}",
        lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0]),
    )


def _program(stored: StoredModel) -> torch.export.ExportedProgram:
    example = torch.zeros(2, *stored.graph.input_shape)
    try:
        return torch.export.export(
            DenseNetwork(stored), (example,), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
    except Exception as error:  # tracing fails in many types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CaptureError(f"torch.export cannot trace this model for any batch size: {reason}") from error


@torch.no_grad()
def _compare(model: SparseModel, run: Run) -> float:
    errors = []
    for batch in _BATCHES:
        x = torch.randn(batch, *model.input_shape, generator=torch.Generator().manual_seed(batch))
        expected = model(x).double()
        errors.append((run(x).double() - expected).norm() / expected.norm().clamp_min(1e-30))
    return float(torch.stack(errors).max())  # NaN if one is

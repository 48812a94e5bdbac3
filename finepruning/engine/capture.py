"""Capture: a PyTorch network -> the graph of our operations.

`torch.export` traces the network with a dynamic batch. What depends on weights alone is computed once, so
that reparametrised weights (`torch.nn.utils.prune`, weight norm), position biases and masks become
stored tensors. In-place operations are replaced by functional ones, dropout disappears, and everything
that has no operation of ours stays as its ATen operation.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from finepruning.engine.norms import fold_norms
from finepruning.engine.reader import NeedsFunctionalError, read
from finepruning.errors import CaptureError
from finepruning.sparse.graph import Graph
from finepruning.sparse.shapes import Stored


def capture(
    module: nn.Module, input_shape: Sequence[int], dtype: torch.dtype | None = None
) -> tuple[Graph, dict[str, Stored]]:
    """Express a network in evaluation mode as a graph.

    Args:
        module: float32 network that takes one tensor and returns one. It is left as it was.
        input_shape: shape of one input without batch, such as ``(3, 224, 224)``.
        dtype: of the stored values of layers; None for float32.

    Returns:
        The graph and the tensors it refers to: CSR where that is smaller than dense.

    Raises:
        CaptureError: the network cannot be traced, or not with a free batch size.
    """
    with _evaluating(module), torch.no_grad():
        program = _export(module, input_shape)
        try:
            builder = read(program)
        except NeedsFunctionalError:
            # Mutation through views: let PyTorch rewrite it. Rare, and several times slower than the rest.
            builder = read(program.run_decompositions({}))
        builder.prune()
        fold_norms(builder)
        return builder.assemble(tuple(input_shape), dtype)


def _export(module: nn.Module, input_shape: Sequence[int]) -> ExportedProgram:
    parameter = next(module.parameters(), torch.empty(0))
    # A batch of 2: torch.export would take 1 for a constant.
    example = torch.zeros(2, *input_shape, dtype=torch.float32, device=parameter.device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(module, (example,), dynamic_shapes=({0: Dim.AUTO},), strict=False)
    except Exception as error:  # the tracer raises whatever the network's own code raises
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = f"{type(error).__name__}: {lines[0] if lines else ''}"
        raise CaptureError(
            f"{type(module).__name__} cannot be traced by torch.export for inputs of shape "
            f"{tuple(example.shape)}: {reason[:300]}"
        ) from error


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for every submodule, and back to what each was."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, mode in modes:
            child.training = mode

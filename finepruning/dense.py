"""A stored model as a plain PyTorch network with its zeros filled in: for exports and for experiments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from finepruning.engine.activations import ACTIVATIONS
from finepruning.engine.operations import run_dense
from finepruning.sparse import aten
from finepruning.sparse.csr import CSR
from finepruning.sparse.graph import Node
from finepruning.sparse.storage import StoredModel


class DenseNetwork(nn.Module):
    """The graph of a stored model on dense float32 weights; any batch size, also inside torch.export.

    Attributes:
        weights: name of a layer -> its weight, for every convolution and fully connected layer, in
            execution order. Changing one in place changes the network.
    """

    def __init__(self, stored: StoredModel) -> None:
        super().__init__()
        self.graph = stored.graph
        self._attributes: dict[str, str] = {}
        for name, tensor in stored.tensors.items():
            self._attributes[name] = attribute = f"{name.replace('.', '_')}_{len(self._attributes)}"
            dense = tensor.to_dense() if isinstance(tensor, CSR) else tensor.clone()
            if dense.is_floating_point():
                self.register_parameter(attribute, nn.Parameter(dense.float(), requires_grad=False))
            else:
                self.register_buffer(attribute, dense)
        self.weights = {
            node.name: self._stored(node.weight) for node in self.graph.nodes if node.weight is not None
        }
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """float32 ``[batch, *input_shape]`` -> what the stored model gives."""
        values = {self.graph.input: images}
        for node in self.graph.nodes:
            values[node.name] = self._run(node, values, images.shape[0])
        return values[self.graph.output]

    def _stored(self, name: str) -> Tensor:
        tensor: Tensor = getattr(self, self._attributes[name])
        return tensor

    def _run(self, node: Node, values: dict[str, Tensor], batch: int) -> Tensor:
        attrs = node.attrs
        if node.op == "aten":
            constants = {name: self._stored(name) for name in self._attributes}
            device = values[self.graph.input].device
            bound = aten.map_arguments(
                attrs, lambda kind, content: _extent({kind: content}, batch) if kind == "batch" else None
            )
            return aten.call(bound, values, constants, device)
        inputs = [values[name] for name in node.inputs]
        if node.op == "view":
            return inputs[0].reshape([_extent(extent, batch) for extent in attrs["shape"]])
        if node.op == "activation":
            return ACTIVATIONS[attrs["kind"]](inputs[0])
        weight = None if node.weight is None else self._stored(node.weight)
        bias = None if node.bias is None else self._stored(node.bias)
        return run_dense(node.op, attrs, inputs, weight, bias)


def _extent(extent: Any, batch: int) -> int:
    """Like `finepruning.sparse.graph.resolve`, for a ``batch`` that is a symbol while torch.export traces."""
    if isinstance(extent, Mapping):
        scale, offset = extent["batch"]
        total: int = scale * batch + offset
        return total
    return int(extent)

"""Weights files: reading them safely and fitting them to a network whose head may differ."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from finepruning.errors import ModelFileError

_CONTAINERS = ("state_dict", "model_state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.", "model.")
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")
# torchvision's published DenseNet files still separate what its modules join.
_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|conv))\.([12]\..+)$")


def read(path: str) -> dict[str, Tensor]:
    """Read a safetensors file or a torch state dict (also one inside a checkpoint); runs no code from it.

    Raises ModelFileError where the file is missing, damaged, or holds something else.
    """
    file = Path(path).expanduser()
    if not file.exists():
        raise ModelFileError(f"{file}: no such weights file (--weights takes default, none, or a file)")
    if not file.is_file():
        raise ModelFileError(f"{file}: not a file (--weights takes a safetensors or torch file)")
    try:
        content = load_file(file) if file.suffix == ".safetensors" else _read_torch(file)
    except OSError as error:
        raise ModelFileError(f"{file}: cannot be read ({error.strerror or error})") from error
    except SafetensorError as error:
        raise ModelFileError(f"{file}: not an intact safetensors file ({error})") from error
    return _normalize(_state_dict(content, file))


def _read_torch(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelFileError(
            f"{file}: not a torch file of plain tensors; files that need code to load are refused "
            f"(save model.state_dict() or a safetensors file)"
        ) from error
    except OSError:
        raise
    except (RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelFileError(f"{file}: not an intact torch file ({reason})") from error


def _state_dict(content: Any, file: Path) -> dict[str, Tensor]:
    for key in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content:
        raise ModelFileError(f"{file}: holds no tensors by name (expected a state dict)")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ModelFileError(f"{file}: entry {name!r} is a {type(value).__name__}, not a tensor")
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise ModelFileError(f"{file}: tensor {name} holds NaN or infinite values")
    return dict(content)


def _normalize(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo the prefixes of wrappers (data parallel, compile) and old spellings."""
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name[len(prefix) :]: value for name, value in tensors.items()}
    return {_DENSENET.sub(r"\1\2", name): value for name, value in tensors.items()}


def load_into(
    module: nn.Module, tensors: Mapping[str, Tensor], *, head: str, origin: str, name: str
) -> list[str]:
    """Copy weights into a network, leaving a head that is missing or of another size as it is.

    Args:
        module: receives the values, converted to its own dtypes.
        tensors: by state-dict name.
        head: name of the layer that puts out the logits.
        origin: where the tensors come from, for messages.
        name: the network, for messages.

    Returns:
        What starts fresh, one sentence each.

    Raises:
        ModelFileError: the tensors belong to another network; nothing is copied then.
    """
    own = module.state_dict()
    given = {key: value for key, value in tensors.items() if not key.startswith(_AUXILIARY)}
    # Trunks are published without their whole classifier as well as without its last layer.
    block = head.split(".")[0] + "."
    missing = [key for key in own if key not in given and not key.endswith("num_batches_tracked")]
    lacking = [key for key in missing if not key.startswith(block)]
    unknown = [key for key in given if key not in own and not key.startswith(block)]
    resized = [key for key in given if key in own and given[key].shape != own[key].shape]
    other_shape = [key for key in resized if not key.startswith(head + ".")]
    foreign_head = [key for key in given if key not in own and key.startswith(block)]
    matching = len(given) - len(unknown) - len(resized) - len(foreign_head)
    if lacking or unknown or other_shape or not matching:
        raise ModelFileError(_difference(origin, name, own, given, lacking, unknown, other_shape))
    module.load_state_dict(
        {key: given[key] if key in given and key not in resized else value for key, value in own.items()}
    )
    messages = []
    if missing:
        layers = _layers(missing)
        verb = "was" if len(layers) == 1 else "were"
        messages.append(
            f"{', '.join(layers)} {verb} missing in {origin} and start{'s' * (len(layers) == 1)} fresh"
        )
    if resized:
        there, here = given[resized[0]].shape[0], own[resized[0]].shape[0]
        messages.append(f"{head} has {there} outputs in {origin}, {here} here, and starts fresh")
    if foreign_head:
        messages.append(f"{', '.join(_layers(foreign_head))} of {origin} not used")
    return messages


def _layers(keys: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(key.rpartition(".")[0] or key for key in keys))


def _difference(
    origin: str,
    name: str,
    own: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    lacking: list[str],
    unknown: list[str],
    other_shape: list[str],
) -> str:
    parts = []
    if lacking:
        parts.append(f"{len(lacking)} of the network's {len(own)} tensors are missing ({_examples(lacking)})")
    if unknown:
        parts.append(
            f"{len(unknown)} of the file's {len(given)} tensors are unknown to it ({_examples(unknown)})"
        )
    if other_shape:
        first = other_shape[0]
        parts.append(
            f"{len(other_shape)} have another shape ({first}: {tuple(given[first].shape)} in the file, "
            f"{tuple(own[first].shape)} in {name})"
        )
    if not parts:
        parts.append("no tensor fits")
    return f"{origin}: not weights of {name}: {'; '.join(parts)}"


def _examples(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")

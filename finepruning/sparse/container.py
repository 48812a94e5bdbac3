"""Safetensors files: written in one pass, and read without trusting them."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finepruning.errors import ModelFileError
from finepruning.sparse.graph import is_int, product, short

MAX_HEADER = 64 << 20
_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> str:
    """Write a safetensors file, sync it to disk and return its SHA-256 in hexadecimal.

    Tensors are laid out by falling element size, so that each starts aligned.
    """
    order, head = _head(tensors)
    digest = hashlib.sha256(head)
    with path.open("wb") as file:
        file.write(head)
        for name in order:
            raw = tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data
            file.write(raw)
            digest.update(raw)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def tensors_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Size of the file that `write_tensors` would write; "meta" tensors are enough."""
    _, head = _head(tensors)
    return len(head) + sum(tensor.nbytes for tensor in tensors.values())


def _head(tensors: Mapping[str, Tensor]) -> tuple[list[str], bytes]:
    """The order of the tensors in the file, and the bytes before the first."""
    names = {dtype: name for name, dtype in _DTYPES.items()}
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in order:
        tensor = tensors[name]
        end = offset + tensor.nbytes
        header[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return order, len(text).to_bytes(8, "little") + text


def read_file(path: Path, limit: int | None = None) -> bytearray:
    """The bytes of a regular file (links are followed; pipes and devices are refused).

    Raises:
        ModelFileError: missing, unreadable, no regular file, or larger than ``limit`` bytes.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ModelFileError(
            f"{path} cannot be read: {reason}; is {path.parent} a model directory?"
        ) from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise ModelFileError(f"{path} is not a regular file")
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        if limit is not None and status.st_size > limit:
            raise ModelFileError(f"{path} has {status.st_size} bytes; at most {limit} are allowed")
        try:
            data = bytearray(status.st_size)
            view, done = memoryview(data), 0
            while done < len(data):
                count = file.readinto(view[done:])
                if not count:
                    raise ModelFileError(f"{path} became shorter while it was read")
                done += count
            view.release()
        except (OSError, MemoryError) as error:
            raise ModelFileError(f"{path} cannot be read: {error or 'out of memory'}") from None
    return data


def parse_json(text: bytes | bytearray | memoryview, where: str) -> Any:
    """JSON without duplicate keys, NaN or infinities.

    Raises:
        ModelFileError: naming ``where`` and what is wrong.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise ModelFileError(f"{where} holds the key {short(twice)} twice in one object")
        return result

    def constant(name: str) -> Any:
        raise ModelFileError(f"{where} holds {name}, which is no JSON number")

    try:
        return json.loads(
            bytes(text).decode("utf-8"),
            object_pairs_hook=unique,
            parse_constant=constant,
            parse_float=_finite,
        )
    except RecursionError:
        raise ModelFileError(f"{where} is nested too deeply") from None
    except ValueError as error:
        raise ModelFileError(f"{where} is not valid JSON: {short(str(error), 120)}") from None


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is out of range")
    return value


@dataclass(frozen=True)
class _Entry:
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def parse_tensors(data: bytearray, where: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, as views of ``data``.

    Offsets must cover the file's data section without gaps or overlaps, as the format demands.

    Raises:
        ModelFileError: naming the tensor and the rule.
    """
    if len(data) < 8:
        raise ModelFileError(f"{where} is truncated: it has {len(data)} bytes")
    length = int.from_bytes(data[:8], "little")
    if length > min(len(data) - 8, MAX_HEADER):
        raise ModelFileError(f"{where} is truncated or foreign: its header claims {length} bytes")
    header = parse_json(memoryview(data)[8 : 8 + length], f"the header of {where}")
    if not isinstance(header, dict):
        raise ModelFileError(f"the header of {where} is not an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(item, str) for item in metadata.values()):
        raise ModelFileError(f"the header of {where}: __metadata__ must map strings to strings")
    entries = {name: _entry(value, f"{where}: tensor {short(name)}") for name, value in header.items()}
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != end:
            raise ModelFileError(f"{where}: tensor {short(name)} must start at byte {end}, not {entry.start}")
        end = entry.end
    base = 8 + length
    if base + end != len(data):
        raise ModelFileError(
            f"{where} is truncated or altered: its header describes {base + end} bytes, it has {len(data)}"
        )
    return {name: _tensor(data, base, entry) for name, entry in entries.items()}


def _entry(value: Any, where: str) -> _Entry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ModelFileError(f"{where} must have exactly dtype, shape and data_offsets")
    name, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(name, str) or name not in _DTYPES:
        raise ModelFileError(f"{where} has dtype {short(name)}; allowed are {', '.join(_DTYPES)}")
    if not isinstance(shape, list) or len(shape) > 8 or not all(is_int(item, 0, 1 << 40) for item in shape):
        raise ModelFileError(f"{where} has shape {short(shape)}; up to 8 sizes of at least 0 are allowed")
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(is_int(item, 0, 1 << 62) for item in offsets)
    ):
        raise ModelFileError(
            f"{where} has data_offsets {short(offsets)}; two offsets of at least 0 are needed"
        )
    dtype = _DTYPES[name]
    size = product(shape) * dtype.itemsize
    if offsets[1] - offsets[0] != size:
        raise ModelFileError(f"{where} of {size} bytes has data_offsets {offsets}")
    return _Entry(dtype, tuple(shape), offsets[0], offsets[1])


def _tensor(data: bytearray, base: int, entry: _Entry) -> Tensor:
    if entry.start == entry.end:
        return torch.empty(entry.shape, dtype=entry.dtype)
    start, count = base + entry.start, product(entry.shape)
    if start % entry.dtype.itemsize:  # legal, if unusual; kernels want aligned elements
        part = bytearray(memoryview(data)[start : base + entry.end])
        return torch.frombuffer(part, dtype=entry.dtype, count=count).reshape(entry.shape)
    return torch.frombuffer(data, dtype=entry.dtype, count=count, offset=start).reshape(entry.shape)

"""Seeded mutations of model directories, and the judgement on what the loader makes of them.

The suite runs a share of these cases; benchmarks/loader_fuzz.py runs as many as asked for.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finepruning.sparse.aten import STORABLE

CONFIG, WEIGHTS = "config.json", "model.safetensors"

SCRAPS = (
    None, True, 0, 1, -1, 7, 1 << 16, 0.5, 1e300, "", "x", "conv", "conv.weight", "aten.matmul.default",
    "aten.expand.default", "aten.einsum.default", [], {}, [1, 1], [0, 0], [-1, -1], [1 << 30, 1 << 30],
    [[[[]]]], {"value": "flat"}, {"tensor": "conv.weight"}, {"batch": [1 << 20, 1]}, {"dtype": "int64"},
    {"float": "nan"}, "a" * 500,
)  # fmt: skip
HUGE = (1 << 15, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, 1 << 70, -(1 << 63))
ARGUMENTS = (
    None, True, 0, 1, 2, 3, -1, -2, 8, 64, 1 << 20, 1 << 31, (1 << 63) - 1, -(1 << 63), 0.0, 0.5, -1.5, 1e300,
    "ij,jk->ik", "i...->...", "mean", "none", "tanh", "constant", [], [0], [1], [2, 2], [-1], [1, 0],
    [0, 0, 0, 0], [1, 1, 1, 1], [-5, 3], [1 << 40], [1 << 20, 1 << 20], [0.5, 2.0], {"dtype": "int64"},
    {"dtype": "bool"}, {"dtype": "float16"}, {"float": "nan"}, {"float": "inf"}, {"batch": [1, 0]},
    {"batch": [1, -1]}, {"batch": [1 << 20, 0]},
)  # fmt: skip
TARGETS = sorted(STORABLE)
PATHS = (
    "../../etc/passwd",
    "/dev/zero",
    "a\0b",
    "file:///etc/passwd",
    "C:\\x",
    "..",
    "\ud800",
    "~root",
    "%s%n",
)


@dataclass(frozen=True)
class Model:
    """The two files of a model directory."""

    config: bytes
    weights: bytes

    @classmethod
    def read(cls, directory: Path) -> Model:
        return cls((directory / CONFIG).read_bytes(), (directory / WEIGHTS).read_bytes())

    def document(self) -> Any:
        return json.loads(self.config)

    def with_document(self, document: Any) -> Model:
        return replace(self, config=json.dumps(document).encode("utf-8", "surrogatepass"))

    @property
    def data_start(self) -> int:
        return 8 + int.from_bytes(self.weights[:8], "little")

    def header(self) -> Any:
        return json.loads(self.weights[8 : self.data_start])

    def with_header(self, header: Any) -> Model:
        text = json.dumps(header).encode("utf-8", "surrogatepass")
        return self.with_weights(len(text).to_bytes(8, "little") + text + self.weights[self.data_start :])

    def with_weights(self, weights: bytes) -> Model:
        """Other weights, and the checksum that belongs to them, so that the checks behind it are reached."""
        document = self.document()
        document["sha256"] = hashlib.sha256(weights).hexdigest()
        return replace(self.with_document(document), weights=weights)

    def write(self, directory: Path) -> None:
        for name in os.listdir(directory) if directory.exists() else ():
            place = directory / name
            shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink()
        directory.mkdir(exist_ok=True)
        (directory / CONFIG).write_bytes(self.config)
        (directory / WEIGHTS).write_bytes(self.weights)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything inside a JSON document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def at(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


def mutate(chance: random.Random, document: Any, scraps: tuple[Any, ...] = SCRAPS) -> Any:
    """One value replaced by a scrap or by another part of the document, dropped or doubled."""
    everywhere = list(places(document))
    path = chance.choice(everywhere)
    parent, key = at(document, path[:-1]), path[-1]
    action = chance.randrange(4)
    if action == 0:
        parent[key] = copy.deepcopy(chance.choice(scraps))
    elif action == 1:
        parent[key] = copy.deepcopy(at(document, chance.choice(everywhere)))
    elif action == 2:
        del parent[key]
    elif isinstance(parent, list):
        parent.insert(key, copy.deepcopy(parent[key]))
    else:
        parent[chance.choice(("extra", "weight", "bias", "attrs", "nnz"))] = copy.deepcopy(
            chance.choice(scraps)
        )
    return document


def leaves(document: Any, kinds: type | tuple[type, ...]) -> list[tuple[Any, ...]]:
    """Paths of all values of these types."""
    return [path for path in places(document) if isinstance(at(document, path), kinds)]


def put(chance: random.Random, document: Any, kinds: type | tuple[type, ...], values: Any) -> Any:
    """One to three values of these types replaced."""
    for _ in range(chance.randint(1, 3)):
        found = leaves(document, kinds)
        if found:
            path = chance.choice(found)
            at(document, path[:-1])[path[-1]] = chance.choice(values)
    return document


def scramble(chance: random.Random, data: bytes, start: int = 0) -> bytes:
    """A byte changed, bytes dropped, added, or replaced by a power of two."""
    raw = bytearray(data)
    place = chance.randrange(min(start, len(raw) - 1), len(raw))
    action = chance.randrange(4)
    if action == 0:
        raw[place] = chance.randrange(256)
    elif action == 1:
        del raw[place : place + chance.choice((1, 4, 64))]
    elif action == 2:
        raw[place:place] = chance.randbytes(4)
    else:
        raw[place : place + 4] = (1 << chance.randrange(32)).to_bytes(4, "little")
    return bytes(raw)


Mutation = Callable[[random.Random, Model], Model]
MUTATIONS: dict[str, Mutation] = {}


def _mutation(function: Mutation) -> Mutation:
    MUTATIONS[function.__name__] = function
    return function


@_mutation
def config(chance: random.Random, model: Model) -> Model:
    document = model.document()
    for _ in range(chance.choice((1, 1, 2, 4))):
        document = mutate(chance, document)
    return model.with_document(document)


@_mutation
def config_text(chance: random.Random, model: Model) -> Model:
    return replace(model, config=scramble(chance, model.config))


@_mutation
def arguments(chance: random.Random, model: Model) -> Model:
    """Other operators, and other arguments of the same."""
    document = model.document()
    nodes = [node for node in document["graph"]["nodes"] if node["op"] == "aten"]
    if not nodes:
        return config(chance, model)
    attrs = chance.choice(nodes)["attrs"]
    if chance.random() < 0.5:
        attrs["target"] = chance.choice(TARGETS)
    for _ in range(chance.randint(0, 2)):
        for key in ("args", "kwargs"):
            if chance.random() < 0.6 and attrs[key]:
                attrs[key] = mutate(chance, {"a": attrs[key]}, ARGUMENTS).get("a", attrs[key])
    if chance.random() < 0.3 and isinstance(attrs["args"], list):
        attrs["args"] = [
            *attrs["args"][: chance.randint(0, 3)],
            *chance.choices(ARGUMENTS, k=chance.randint(0, 3)),
        ]
    if chance.random() < 0.2:
        attrs["item"] = chance.choice((None, 0, 1, 7))
    return model.with_document(document)


@_mutation
def header(chance: random.Random, model: Model) -> Model:
    return model.with_header(mutate(chance, model.header()))


@_mutation
def weights_bytes(chance: random.Random, model: Model) -> Model:
    return model.with_weights(scramble(chance, model.weights))


@_mutation
def tensors(chance: random.Random, model: Model) -> Model:
    return model.with_weights(scramble(chance, model.weights, start=model.data_start))


@_mutation
def checksum_left(chance: random.Random, model: Model) -> Model:
    return replace(model, weights=scramble(chance, model.weights))


@_mutation
def truncation(chance: random.Random, model: Model) -> Model:
    if chance.random() < 0.3:
        return replace(model, config=model.config[: chance.randrange(len(model.config))])
    cut = model.weights[: chance.randrange(len(model.weights))]
    return model.with_weights(cut) if chance.random() < 0.5 else replace(model, weights=cut)


@_mutation
def swapped(chance: random.Random, model: Model) -> Model:
    """Two nodes, two layers' tensors, two table entries or two ranges of bytes change places."""
    document, header = model.document(), model.header()
    nodes, table = document["graph"]["nodes"], document["tensors"]
    action = chance.randrange(4)
    if action == 0:
        a, b = chance.randrange(len(nodes)), chance.randrange(len(nodes))
        nodes[a], nodes[b] = nodes[b], nodes[a]
    elif action == 1:
        owners = [node for node in nodes if "weight" in node]
        key = chance.choice(("weight", "bias"))
        a, b = chance.choice(owners), chance.choice(owners)
        a[key], b[key] = b.get(key, a["weight"]), a.get(key, b["weight"])
    elif action == 2:
        a, b = chance.choice(list(table)), chance.choice(list(table))
        table[a], table[b] = table[b], table[a]
    else:
        names = [name for name in header if name != "__metadata__"]
        a, b = chance.choice(names), chance.choice(names)
        header[a], header[b] = header[b], header[a]
        return model.with_header(header)
    return model.with_document(document)


@_mutation
def huge_counts(chance: random.Random, model: Model) -> Model:
    if chance.random() < 0.3:
        return model.with_header(put(chance, model.header(), int, HUGE))
    if chance.random() < 0.1:
        return model.with_weights(chance.choice(HUGE[:-2]).to_bytes(8, "little") + model.weights[8:])
    return model.with_document(put(chance, model.document(), int, HUGE))


@_mutation
def small_counts(chance: random.Random, model: Model) -> Model:
    """Numbers that are plausible, so that many of these models load and run."""
    return model.with_document(put(chance, model.document(), int, range(-2, 9)))


@_mutation
def booleans(chance: random.Random, model: Model) -> Model:
    return model.with_document(put(chance, model.document(), bool, (True, False, 0, 1, None, "true")))


@_mutation
def names(chance: random.Random, model: Model) -> Model:
    """Paths where names belong, and names of one thing where another's belongs."""
    values = (*PATHS, *(node["name"] for node in model.document()["graph"]["nodes"]))
    if chance.random() < 0.3:
        header = model.header()
        old = chance.choice(list(header))
        header[chance.choice(values)] = header.pop(old)
        return model.with_header(header)
    return model.with_document(put(chance, model.document(), str, values))


@_mutation
def duplicate_keys(chance: random.Random, model: Model) -> Model:
    text = model.config.decode() if (in_config := chance.random() < 0.7) else json.dumps(model.header())
    spots = [i for i in range(len(text)) if text[i] == "{"]
    spot = chance.choice(spots) + 1
    key = chance.choice(("format", "name", "op", "shape", "extra", "dtype", "a"))
    twice = f'"{key}": 1, "{key}": {chance.choice(("1", "null", "[]"))}'
    comma = "" if text[spot:].lstrip().startswith("}") else ", "
    text = text[:spot] + twice + comma + text[spot:]
    if in_config:
        return replace(model, config=text.encode())
    raw = text.encode()
    return model.with_weights(len(raw).to_bytes(8, "little") + raw + model.weights[model.data_start :])


@_mutation
def not_finite(chance: random.Random, model: Model) -> Model:
    """NaN, infinities and subnormals in tensors, or as JSON numbers."""
    if chance.random() < 0.3:
        text = json.dumps(put(chance, model.document(), (int, float), ("@",)))
        number = chance.choice(("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e-999", "0.0"))
        return replace(model, config=text.replace('"@"', number).encode())
    raw = bytearray(model.weights)
    numbers = (float("nan"), float("inf"), float("-inf"), 1e-40, -1e-40, 3e38, -0.0)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(model.data_start, len(raw) - 4) // 4 * 4
        raw[place : place + 4] = struct.pack("<f", chance.choice(numbers))
    return model.with_weights(bytes(raw))


@_mutation
def deep_nesting(chance: random.Random, model: Model) -> Model:
    depth = chance.choice((3, 5, 6, 50, 900, 1100, 20_000))
    opening, closing = chance.choice((("[", "]"), ('{"a":', "}"), ('{"value":', "}")))
    nested = opening * depth + "1" + closing * depth
    if chance.random() < 0.3:
        header = model.header()
        header[chance.choice(list(header))] = "@"
        raw = json.dumps(header).replace('"@"', nested).encode()
        return model.with_weights(len(raw).to_bytes(8, "little") + raw + model.weights[model.data_start :])
    text = json.dumps(put(chance, model.document(), (int, str, list), ("@",)))
    return replace(model, config=text.replace('"@"', nested).encode())


def tamper(chance: random.Random, directory: Path, others: Path) -> Path:
    """Change what the two names stand for: links, pipes, devices, folders. Returns the path to load."""
    name = chance.choice((CONFIG, WEIGHTS))
    other = WEIGHTS if name == CONFIG else CONFIG
    place = directory / name
    trick = chance.randrange(12)
    targets = {
        0: others / name,  # a cache of links, which is allowed
        1: directory / other,
        2: place,  # a loop
        3: directory / "nothing",
        4: Path("/dev/zero"),
        5: Path("/dev/null"),
        6: directory,
        7: Path("/proc/self/maps"),
    }
    if trick in targets:
        place.unlink()
        place.symlink_to(targets[trick])
    elif trick == 8:
        place.unlink()
        os.mkfifo(place)
    elif trick == 9:
        place.unlink()
        place.mkdir()
    elif trick == 10:
        place.unlink()
    else:
        return chance.choice(
            (
                directory / ".." / directory.name,
                directory / name,
                directory / ("a" * 5000),
                directory / ("a/" * 3000),
                directory / "\0",
                directory / "\udcff",
                Path("/dev/fd/0"),
                Path(""),
                Path("~"),
            )
        )
    return directory

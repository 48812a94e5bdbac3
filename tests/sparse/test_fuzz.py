"""Seeded mutations of a model directory: each is refused with the typed error or loads as a usable model."""

from __future__ import annotations

import copy
import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from model_files import small_model

from finepruning.errors import ModelFileError
from finepruning.sparse.shapes import infer
from finepruning.sparse.storage import load, save

SCRAPS = (
    None, True, 0, 1, -1, 7, 1 << 16, 1 << 31, 1 << 63, 1 << 70, 0.5, 1e300, "", "x", "conv", "conv.weight",
    "aten.matmul.default", "aten.expand.default", "aten.einsum.default", [], {}, [1, 1], [0, 0], [-1, -1],
    [1 << 30, 1 << 30], [[[[]]]], {"value": "flat"}, {"tensor": "conv.weight"}, {"batch": [1 << 20, 1]},
    {"dtype": "int64"}, {"float": "nan"}, "a" * 500,
)  # fmt: skip


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


def mutated_json(chance: random.Random, document: Any) -> Any:
    """One value replaced by a scrap or by another part of the document, dropped or doubled."""
    document = copy.deepcopy(document)
    everywhere = list(places(document))
    path = chance.choice(everywhere)
    parent, key = at(document, path[:-1]), path[-1]
    action = chance.randrange(4)
    if action == 0:
        parent[key] = copy.deepcopy(chance.choice(SCRAPS))
    elif action == 1:
        parent[key] = copy.deepcopy(at(document, chance.choice(everywhere)))
    elif action == 2:
        del parent[key]
    elif isinstance(parent, list):
        parent.insert(key, copy.deepcopy(parent[key]))
    else:
        parent[chance.choice(("extra", "weight", "bias", "attrs", "nnz"))] = copy.deepcopy(
            chance.choice(SCRAPS)
        )
    return document


def mutated_bytes(chance: random.Random, data: bytes, start: int = 0) -> bytes:
    raw = bytearray(data)
    place = chance.randrange(start, len(raw))
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


@pytest.mark.parametrize("seed", range(8))
def test_mutated_directories(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    directory = tmp_path / "model"
    save(small_model(), directory)
    config, weights = directory / "config.json", directory / "model.safetensors"
    document, data = json.loads(config.read_text()), weights.read_bytes()
    length = 8 + int.from_bytes(data[:8], "little")
    messages = []
    for case in range(80):
        changed, new_data = document, data
        if case % 4 == 0:
            changed = mutated_json(chance, document)
        elif case % 4 == 1:
            text = json.dumps(mutated_json(chance, json.loads(data[8:length]))).encode()
            new_data = len(text).to_bytes(8, "little") + text + data[length:]
        else:
            new_data = mutated_bytes(chance, data, start=length if case % 4 == 2 else 0)
        if new_data is not data:  # a right checksum, to reach the checks behind it
            changed = {**changed, "sha256": hashlib.sha256(new_data).hexdigest()}
        config.write_text(json.dumps(changed))
        weights.write_bytes(new_data)
        try:
            model = load(directory)
        except ModelFileError as error:
            messages.append(str(error))
            continue
        assert infer(model.graph, model.tensors, 2)[model.graph.output][0][0] == 2
    assert len(messages) > 40
    assert all(len(message.splitlines()) == 1 for message in messages)

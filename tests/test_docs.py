"""The examples of the tutorial and the recipes run, in order, in an empty folder.

Python blocks share one namespace; a block that begins with a file name is that file. In sh blocks the lines
that call finepruning run, with fewer epochs and trials where they train; lines of "sh norun" blocks need a
network, so only their options are looked up.
"""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from finepruning.cli import run

DOCS = Path(__file__).parents[1] / "docs"
QUICK = ["--rounds", "1", "--trials", "2", "--epochs", "1", "--dense-epochs", "1", "--final-epochs", "1"]
DENSE = (QUICK.index("--dense-epochs"), QUICK.index("--dense-epochs") + 1)
BLOCK = re.compile(r"^```(python|sh norun|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(name: str) -> list[tuple[str, str]]:
    return BLOCK.findall((DOCS / name).read_text(encoding="utf-8"))


def commands(code: str) -> Iterator[list[str]]:
    for line in code.replace("\\\n", " ").splitlines():
        if line.startswith("finepruning "):
            yield shlex.split(line)[1:]


def possible(line: list[str]) -> bool:
    return "onnx" not in line or find_spec("onnxscript") is not None


def follow(name: str) -> None:
    namespace: dict[str, object] = {"__name__": "example"}
    for kind, code in blocks(name):
        title = re.match(r"# (\w+\.py)\n", code)
        if title:
            Path(title[1]).write_text(code)
        elif kind == "python":
            exec(compile(code, name, "exec"), namespace)
        elif kind == "sh":
            for line in commands(code):
                quick = ["--no-memory"] if line[0] == "bench" else []
                if line[0] == "compress":  # a run that starts from another has no dense phase
                    quick = [o for i, o in enumerate(QUICK) if "--from" not in line or i not in DENSE]
                if "--resume" in line:
                    quick = []
                assert run([*line, *quick]) == (0 if possible(line) else 2), line


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_tutorial_ends_with_a_service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    follow("tutorial.md")
    assert (tmp_path / "runs" / "longer" / "report.html").stat().st_size > 10_000
    pytest.importorskip("fastapi", reason="fastapi is not installed")
    monkeypatch.syspath_prepend(tmp_path)
    import serve  # type: ignore[import-not-found]

    image = next((tmp_path / "photos" / "argyle").iterdir()).read_bytes()
    status, body = asyncio.run(post(serve.app, "/classify", image))
    assert status == 200
    shares = json.loads(body)
    assert sorted(shares) == ["argyle", "bricks", "hexagons", "scales"]
    assert sum(shares.values()) == pytest.approx(1, abs=1e-4)
    assert asyncio.run(post(serve.app, "/classify", b"no image"))[0] == 422


async def post(app: Any, path: str, body: bytes) -> tuple[int, bytes]:
    """Status and body that an ASGI application answers a POST request with."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST"}
    scope |= {"scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": ""}
    await app({**scope, "headers": [], "server": ("test", 80), "client": ("test", 1)}, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def test_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    kind, code = blocks("tutorial.md")[0]  # draws the images
    assert kind == "python"
    exec(compile(code, "tutorial.md", "exec"), {})
    follow("recipes.md")
    out = capsys.readouterr().out
    assert "no/such/folder: no such folder" in out
    assert re.search(r"^\d+ of 320$", out, re.MULTILINE)


@pytest.mark.parametrize("name", ["tutorial.md", "recipes.md"])
def test_options_that_are_not_run_exist(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, code in blocks(name):
        for line in commands(code) if kind == "sh norun" else ():
            assert run([line[0], "--help"]) == 0
            known = capsys.readouterr().out
            for option in (word for word in line if word.startswith("--")):
                assert option in known, line


def test_result_tables_are_those_of_the_rows() -> None:
    script = Path(__file__).parent.parent / "benchmarks" / "method_results.py"
    subprocess.run([sys.executable, str(script), "--check"], check=True)

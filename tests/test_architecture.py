"""The arrows of the architecture: imports run one way, and importing the package stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import finepruning

PACKAGE = Path(finepruning.__file__).parent

# What the modules of each part must not import. A part is a folder or a module of the package.
FORBIDDEN = {
    "training": {"engine", "sparse", "search", "compress", "bench", "report", "commands", "cli"},
    "pruning": {"engine", "search", "training", "compress", "bench", "report", "commands", "cli"},
    "search": {"engine", "sparse", "compress", "bench", "report", "commands", "cli"},
    "data": {"engine", "sparse", "training", "pruning", "search", "compress", "bench", "report", "commands"},
    "models": {
        "engine",
        "sparse",
        "training",
        "pruning",
        "search",
        "compress",
        "bench",
        "report",
        "commands",
    },
    "sparse": {"engine", "training", "pruning", "search", "compress", "bench", "report", "data", "models"},
    "engine": {"training", "pruning", "search", "compress", "bench", "report", "data", "models", "commands"},
    "report": {"engine", "training", "search", "compress", "bench", "commands", "cli"},
    "bench": {"training", "pruning", "search", "compress", "commands", "cli"},
}


def imported_parts(source: Path) -> set[str]:
    """Parts of finepruning that a file imports anywhere, function bodies included."""
    parts = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        parts |= {name.split(".")[1] for name in modules if name.startswith("finepruning.")}
    return parts


@pytest.mark.parametrize("part", sorted(FORBIDDEN))
def test_imports_run_one_way(part: str) -> None:
    files = sorted((PACKAGE / part).rglob("*.py")) or [PACKAGE / f"{part}.py"]
    against = {
        str(file.relative_to(PACKAGE)): sorted(imported_parts(file) & FORBIDDEN[part])
        for file in files
        if imported_parts(file) & FORBIDDEN[part]
    }
    assert against == {}


@pytest.mark.parametrize("module", ["torch", "torchvision", "botorch", "triton", "matplotlib"])
def test_importing_the_package_does_not_import(module: str) -> None:
    code = f"import sys, finepruning; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_error_of_ours_can_be_caught_as_one() -> None:
    errors = [
        value
        for value in vars(finepruning.errors).values()
        if isinstance(value, type) and issubclass(value, Exception)
    ]
    assert len(errors) > 5
    assert all(issubclass(error, finepruning.FinepruningError) for error in errors)

"""No test times kernels to choose one, and Triton kernels run under an interpreter where there is no GPU.

Triton decides when a function is decorated, its own library included, and torch imports it during an export:
the switch must be set before the first test of any folder runs.
"""

import os
from pathlib import Path

import pytest
import torch

# What a layer's time decides would differ from run to run; tests of that choice measure where they need it.
os.environ["FINEPRUNING_CACHE"] = "off"

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of generated images in three classes, for `tiny_run`."""
    from tiny_run import make_images

    folder = tmp_path_factory.mktemp("data") / "photos"
    make_images(folder)
    return folder

"""What `import finepruning` gives."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = (
    "import finepruning, finepruning.errors\n"
    "try:\n"
    "    finepruning.compress(finepruning.CompressConfig(data='/no/such/folder'))\n"
    "except finepruning.DataError:\n"
    "    print('refused')\n"
)


@pytest.mark.parametrize(
    "first", ["", "from finepruning.compress import Interrupted\n", "import finepruning.compress\n"]
)
def test_compress_can_be_called_whoever_imported_its_module_first(first: str) -> None:
    result = subprocess.run([sys.executable, "-c", first + CODE], capture_output=True, text=True, check=False)
    assert result.stdout == "refused\n", result.stderr


def test_every_public_name_is_there() -> None:
    import finepruning

    for name in finepruning.__all__:
        assert getattr(finepruning, name) is not None
    assert set(finepruning.__all__) <= set(dir(finepruning))

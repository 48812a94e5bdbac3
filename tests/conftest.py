"""No test times kernels to choose one, and Triton kernels run under an interpreter where there is no GPU.

Triton decides when a function is decorated, its own library included, and torch imports it during an export:
the switch must be set before the first test of any folder runs.
"""

import os

import torch

# What a layer's time decides would differ from run to run; tests of that choice measure where they need it.
os.environ["FINEPRUNING_CACHE"] = "off"

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

"""Triton kernels run under Triton's interpreter where there is no GPU.

Triton decides when a function is decorated, its own library included, and torch imports it during an export:
the switch must be set before the first test of any folder runs.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

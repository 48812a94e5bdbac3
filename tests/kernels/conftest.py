"""Kernels run under Triton's interpreter where there is no GPU.

Triton decides at the moment a kernel is defined, so the switch is set before the first test module of
this folder imports a kernel. The kernels are imported by nothing else in a process without CUDA.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

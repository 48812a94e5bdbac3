"""Triton kernels of the CUDA engine: one file an operation family, each with a naive reference in `naive`.

Nothing here is imported until a CUDA executor is built, so a machine without Triton never notices.
"""

"""Batch buckets: which batch size is recorded for a batch of images.

A CUDA graph fits one batch size. Sizes are rounded up to a bucket and padded, so that a service with any
batch from 1 to 256 needs 19 graphs, not 256. From 8 on buckets are multiples of 8: with images innermost
in memory, odd batches would break 16-byte reads, so a padded batch of 24 is hardly slower than one of 17.
"""

from __future__ import annotations


def bucket(batch: int) -> int:
    """The smallest bucket that holds ``batch`` images: 1, 2, 4, 8, then at most a quarter of padding.

    Above 32 there are four buckets from one power of two to the next; 8, 16, 24 and 32 below.
    """
    if batch <= 8:
        return 1 << (batch - 1).bit_length()
    step = max(8, 1 << ((batch - 1).bit_length() - 3))
    return -(-batch // step) * step

"""Image data sets: splits, decoding, caching, augmentation."""

from finepruning.config import AUGMENTATIONS
from finepruning.data.images import Images
from finepruning.data.loading import CACHE_LIMIT, Splits, load
from finepruning.data.preprocessing import Preprocessing

__all__ = ["AUGMENTATIONS", "CACHE_LIMIT", "Images", "Preprocessing", "Splits", "load"]

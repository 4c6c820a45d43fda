"""How to make images of arrays in other shapes and types: advice for messages."""

from __future__ import annotations

import numpy as np


def advise(images: np.ndarray) -> str:
    """Returns code that makes (n, h, w, 3) or bytes of an array; "" if unknown."""
    shape = images.shape
    if images.ndim == 3:
        return "numpy.repeat(images[..., None], 3, axis=-1)"
    if images.ndim == 4 and shape[-1] == 1:
        return "numpy.repeat(images, 3, axis=-1)"
    if images.ndim == 4 and shape[1] in (1, 3, 4) and shape[-1] not in (3, 4):
        return "images.transpose(0, 2, 3, 1)"
    if images.ndim == 4 and shape[-1] == 4:
        return "images[..., :3], which leaves out transparency"
    return as_bytes(images) if images.ndim == 4 and shape[-1] == 3 else ""


def as_bytes(images: np.ndarray) -> str:
    """Returns code that makes bytes of other values; it scales those that `astype` would wrap."""
    kind = images.dtype.kind
    if kind not in "biuf" or not images.size:
        return "images.astype('uint8')"
    low, high = images.min(), images.max()
    if low >= 0 and high <= 1:
        return "(255 * images).round().astype('uint8')"
    if low >= 0 and high <= 255:
        return "images.astype('uint8')"
    if images.dtype == np.uint16:
        return "(images // 257).astype('uint8')"
    return f"their values are from {low:g} to {high:g}, scale them to 0 to 255"

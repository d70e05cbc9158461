"""Two patients in one picture: an augmentation that multiplies what a small data set says of left and right."""
from __future__ import annotations

import numpy as np


def joined(image: np.ndarray, mask: np.ndarray, other: np.ndarray, other_mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The left half of one patient beside the right half of another: CutMix (Yun et al., ICCV 2019) along the midline.

    Lesions left and right are then any two of the data set's, so a network can't guess one from the other; and the
    sentence of such a picture is known, too: `reports.describe` writes it from the mask.

    Args:
        image, other: (..., H, W) uint8; the other is brought to the first one's mean and spread, or each seam would be glaring.
        mask, other_mask: (..., H, W), cut alike.
    Returns:
        picture and mask, of the first one's shapes and kinds.
    """
    half = image.shape[-1] // 2
    there = other[..., half:].astype(np.float32)
    there = (there - other.mean()) * (image.std() / (other.std() + 1e-6)) + image.mean()
    right = there.clip(0, 255).round().astype(np.uint8)
    return np.concatenate([image[..., :half], right], axis=-1), np.concatenate([mask[..., :half], other_mask[..., half:]], axis=-1)

"""The data set that comes with undoor: scikit-learn's handwritten digits, enlarged and augmented."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, zoom
from sklearn.datasets import load_digits

from undoor.data.dataset import Dataset, row_ids
from undoor.data.readers.options import ReadOptions
from undoor.errors import UndoorError

SIZES = {"train": 5000, "test": 2000}

SHIFT, ROTATION, BRIGHTNESS = 1.0, np.deg2rad(10), (0.4, 0.7)
"""Largest shift in pixels, largest rotation in radians, and the range of the factor of the brightness."""


def read_digits(options: ReadOptions) -> Dataset:
    """Return 5 000 training or 2 000 test images of 16×16 pixels, made from 1 797 originals; always the same ones.

    Every image is an original that is enlarged twofold, rotated by up to 10°, shifted by up to one pixel and darkened
    to 40–70 % of its brightness. Four fifths of the originals serve for the training images and the others for the
    test images, so that no original is in both.
    """
    if options.split not in SIZES:
        raise UndoorError(f"digits has no split {options.split!r}; choose train or test")
    digits = load_digits()
    originals = zoom(digits.images / 16, (1, 2, 2), order=1)
    shuffled = np.random.default_rng(0).permutation(len(originals))
    cut = len(originals) * 4 // 5
    size = SIZES[options.split]
    rows = np.resize(shuffled[:cut] if options.split == "train" else shuffled[cut:], size)

    generator = np.random.default_rng((1, size))
    images = np.stack([_augment(originals[row], generator) for row in rows])
    return Dataset(
        np.round(images * 255).astype(np.uint8)[:, None],
        digits.target[rows].astype(np.int64),
        tuple(str(name) for name in digits.target_names),
        row_ids(size),
    )


def _augment(image: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    angle = generator.uniform(-ROTATION, ROTATION)
    shift = generator.uniform(-SHIFT, SHIFT, size=2)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = (np.array(image.shape) - 1) / 2
    moved: NDArray[np.float64] = affine_transform(image, rotation, centre - rotation @ (centre + shift), order=1)
    return np.clip(moved * generator.uniform(*BRIGHTNESS), 0, 1)

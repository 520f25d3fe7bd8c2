"""Makes data sets of small images."""

import numpy as np

from undoor.data.dataset import Dataset, row_ids


def make_dataset(n_per_class: int = 20, classes: int = 3, size: int = 12, channels: int = 1, seed: int = 0) -> Dataset:
    """Return noisy images that a small network can learn; the position of a bright bar shows the class."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), n_per_class)
    images = generator.integers(0, 60, (len(labels), channels, size, size))
    for row, label in enumerate(labels):
        start = size * label // classes
        images[row, :, start : start + size // classes, :] += 120
    names = tuple(f"class{k}" for k in range(classes))
    return Dataset(images.astype(np.uint8), labels.astype(np.int64), names, row_ids(len(labels)))

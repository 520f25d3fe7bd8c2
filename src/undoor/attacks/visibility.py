"""How visible a trigger is, measured on the images after rounding and clipping."""

import numpy as np
from numpy.typing import NDArray


def linf(images: NDArray[np.uint8], changed: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return (N,) ‖x' − x‖∞ between the (N, C, H, W) images x and their changed versions x', scaled to [0, 1]."""
    largest: NDArray[np.float64] = _differences(images, changed).max(1)
    return largest / 255


def psnr(images: NDArray[np.uint8], changed: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return (N,) peak signal-to-noise ratios 10 · log₁₀(255² / MSE) in dB; ∞ where nothing changes.

    MSE is the mean squared error over all pixels and channels of an image.
    """
    errors = np.square(_differences(images, changed)).mean(1)
    with np.errstate(divide="ignore"):
        return np.asarray(10 * np.log10(255**2 / errors))


def _differences(images: NDArray[np.uint8], changed: NDArray[np.uint8]) -> NDArray[np.float64]:
    return np.abs(changed.astype(np.float64) - images).reshape(len(images), -1)

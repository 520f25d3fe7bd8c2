"""The control of a guard: the confidence of the network itself."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from undoor.networks.classifier import BATCH_SIZE, Classifier
from undoor.networks.layers import layer_outputs


def max_softmax(classifier: Classifier, images: NDArray[np.uint8], batch_size: int = BATCH_SIZE) -> NDArray[np.float64]:
    """Return 1 − max p, (N,), of (N, C, H, W) uint8 images: it is high where the network is not confident.

    This is the baseline of Hendrycks, Gimpel (ICLR 2017). A backdoor makes the network confident.
    """
    logits = layer_outputs(classifier, images, (), batch_size)[1]
    doubt: NDArray[np.float64] = -np.expm1(log_softmax(logits.astype(np.float64), axis=1).max(axis=1))
    return doubt

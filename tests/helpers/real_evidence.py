"""Evidence of a real victim, read from a file of the real data."""

import numpy as np

from undoor.data.dataset import row_ids
from undoor.data.readers.cifar import CIFAR10
from undoor.evidence import Evidence, Outputs


def real_evidence(file):
    """Return the evidence in an ``.npz`` file, and which images are poisoned."""
    with np.load(file) as arrays:

        def outputs(prefix):
            features = arrays[f"{prefix}features"].astype(np.float32)
            return Outputs(features, np.log(arrays[f"{prefix}probabilities"].astype(np.float32) + 1e-8))

        labels = arrays["labels"].astype(np.int64)
        evidence = Evidence(outputs(""), {"average": outputs("filtered_")}, labels, row_ids(len(labels)), CIFAR10)
        return evidence, arrays["poisoned"]

"""Gaussian blobs of features."""

import numpy as np


def blobs(sizes, dimensions=3, distance=12.0, seed=0):
    """Return float32 features of blobs with unit covariance, ``distance`` apart on every axis, and their numbers."""
    generator = np.random.default_rng(seed)
    parts = [generator.normal(size=(n, dimensions)) + distance * k for k, n in enumerate(sizes)]
    return np.concatenate(parts).astype(np.float32), np.repeat(np.arange(len(sizes)), sizes)

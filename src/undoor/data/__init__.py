"""Labelled images, and where they are read from."""

from undoor.data.dataset import Dataset, Truth

__all__ = ["Dataset", "Truth"]

"""Labelled images, and the readers of the formats that contain them."""

from undoor.data.dataset import Dataset, Truth

__all__ = ["Dataset", "Truth"]

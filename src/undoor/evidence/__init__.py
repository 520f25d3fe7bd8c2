"""The features and logits of a network on every training image, before and after an image filter."""

from undoor.evidence.evidence import Evidence, Outputs

__all__ = ["Evidence", "Outputs"]

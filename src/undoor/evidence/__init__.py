"""What a network says of every training image, before and after a filter."""

from undoor.evidence.evidence import Evidence, Outputs

__all__ = ["Evidence", "Outputs"]

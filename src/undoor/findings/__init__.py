"""What a training-set defense found, how it is written and read, and how good it is."""

from undoor.findings.findings import Findings

__all__ = ["Findings"]

"""What a training-set defence found, its files, and how good it is."""

from undoor.findings.findings import Findings

__all__ = ["Findings"]

"""Findings where users already work: pandas, Hugging Face, code scanning; ``datalab`` joins them to cleanlab."""

from undoor.integrations.frame import issues
from undoor.integrations.hugging_face import from_dataset, to_dataset
from undoor.integrations.sarif import sarif_log

__all__ = ["from_dataset", "issues", "sarif_log", "to_dataset"]

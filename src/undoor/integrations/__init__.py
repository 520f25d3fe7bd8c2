"""Findings in the tools that users already have: pandas, Hugging Face datasets, scikit-learn and code scanning.

The module ``datalab`` adds cleanlab's Datalab; it is imported separately because it needs the extra ``cleanlab``.
"""

from undoor.integrations.frame import issues
from undoor.integrations.hugging_face import from_dataset, to_dataset
from undoor.integrations.mixture_estimator import BicMixture
from undoor.integrations.sarif import sarif_log

__all__ = ["BicMixture", "from_dataset", "issues", "sarif_log", "to_dataset"]

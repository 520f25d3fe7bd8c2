"""undoor where users already work: pandas, Hugging Face, scikit-learn, code scanning; ``datalab`` joins cleanlab."""

from undoor.integrations.frame import issues
from undoor.integrations.hugging_face import from_dataset, to_dataset
from undoor.integrations.mixture_estimator import BicMixture
from undoor.integrations.sarif import sarif_log

__all__ = ["BicMixture", "from_dataset", "issues", "sarif_log", "to_dataset"]

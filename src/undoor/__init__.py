"""undoor finds and removes backdoor poisoning from the training set of an image classifier.

The names in ``__all__`` are imported when they are first used, so that ``import undoor`` itself is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from undoor._version import __version__

if TYPE_CHECKING:
    from undoor.attacks import Attack, OnePixel, poison, triggered
    from undoor.data.dataset import Dataset, Truth
    from undoor.data.readers import read
    from undoor.defenses.post_training import FinePruning, Inspection, ReverseEngineering
    from undoor.defenses.test_time import Ada, Guard
    from undoor.defenses.training_set import ActivationClustering, ClusterImpurity, SpectralSignatures
    from undoor.defenses.training_set.pattern_cleansing import PatternCleansing
    from undoor.errors import UndoorError, UndoorNotice
    from undoor.evidence import Evidence, Outputs
    from undoor.evidence.collect import collect
    from undoor.findings import Findings
    from undoor.networks.classifier import Classifier
    from undoor.networks.recipes import recipe
    from undoor.networks.training import train
    from undoor.networks.weights import load_model
    from undoor.scanning import scan

_HOMES = {
    "Ada": "defenses.test_time",
    "ActivationClustering": "defenses.training_set",
    "Attack": "attacks",
    "Classifier": "networks.classifier",
    "ClusterImpurity": "defenses.training_set",
    "Dataset": "data.dataset",
    "Evidence": "evidence",
    "Findings": "findings",
    "FinePruning": "defenses.post_training",
    "Guard": "defenses.test_time",
    "Inspection": "defenses.post_training",
    "OnePixel": "attacks",
    "Outputs": "evidence",
    "PatternCleansing": "defenses.training_set.pattern_cleansing",
    "ReverseEngineering": "defenses.post_training",
    "SpectralSignatures": "defenses.training_set",
    "Truth": "data.dataset",
    "UndoorError": "errors",
    "UndoorNotice": "errors",
    "collect": "evidence.collect",
    "load_model": "networks.weights",
    "poison": "attacks",
    "read": "data.readers",
    "recipe": "networks.recipes",
    "scan": "scanning",
    "train": "networks.training",
    "triggered": "attacks",
}

__all__ = [
    "ActivationClustering",
    "Ada",
    "Attack",
    "Classifier",
    "ClusterImpurity",
    "Dataset",
    "Evidence",
    "Findings",
    "FinePruning",
    "Guard",
    "Inspection",
    "OnePixel",
    "Outputs",
    "PatternCleansing",
    "ReverseEngineering",
    "SpectralSignatures",
    "Truth",
    "UndoorError",
    "UndoorNotice",
    "__version__",
    "collect",
    "load_model",
    "poison",
    "read",
    "recipe",
    "scan",
    "train",
    "triggered",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'undoor' has no attribute {name!r}")
    value = getattr(import_module(f"undoor.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

"""undoor finds and removes backdoor poisoning from the training set of an image classifier.

Every name below is imported when it is first used, so that ``import undoor`` takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from undoor._version import __version__

if TYPE_CHECKING:
    from undoor.attacks import Attack, OnePixel, poison, triggered
    from undoor.classifier import Classifier
    from undoor.dataset import Dataset, Truth
    from undoor.defenses.post_training import FinePruning, Inspection, ReverseEngineering
    from undoor.defenses.training_set import ActivationClustering, ClusterImpurity, PatternCleansing, SpectralSignatures
    from undoor.errors import UndoorError, UndoorNotice
    from undoor.evidence import Evidence, Outputs, collect
    from undoor.findings import Findings
    from undoor.readers import read
    from undoor.recipes import recipe
    from undoor.scanning import scan
    from undoor.training import train
    from undoor.weights import load_model

_HOMES = {
    "ActivationClustering": "defenses.training_set",
    "Attack": "attacks",
    "Classifier": "classifier",
    "ClusterImpurity": "defenses.training_set",
    "Dataset": "dataset",
    "Evidence": "evidence",
    "Findings": "findings",
    "FinePruning": "defenses.post_training",
    "Inspection": "defenses.post_training",
    "OnePixel": "attacks",
    "Outputs": "evidence",
    "PatternCleansing": "defenses.training_set",
    "ReverseEngineering": "defenses.post_training",
    "SpectralSignatures": "defenses.training_set",
    "Truth": "dataset",
    "UndoorError": "errors",
    "UndoorNotice": "errors",
    "collect": "evidence",
    "load_model": "weights",
    "poison": "attacks",
    "read": "readers",
    "recipe": "recipes",
    "scan": "scanning",
    "train": "training",
    "triggered": "attacks",
}

__all__ = [
    "ActivationClustering",
    "Attack",
    "Classifier",
    "ClusterImpurity",
    "Dataset",
    "Evidence",
    "Findings",
    "FinePruning",
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

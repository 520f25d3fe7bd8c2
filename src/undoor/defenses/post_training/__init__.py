"""Defenses that act on a trained network, with some clean images and without the training set."""

from undoor.defenses.post_training.fine_pruning import FinePruning
from undoor.defenses.post_training.inspection import Inspection
from undoor.defenses.post_training.perturbations import Descent, RandomDirection
from undoor.defenses.post_training.pruned import Pruned
from undoor.defenses.post_training.reverse_engineering import ReverseEngineering

__all__ = ["Descent", "FinePruning", "Inspection", "Pruned", "RandomDirection", "ReverseEngineering"]

"""Defences that act on a trained network."""

from undoor.defenses.post_training.inspection import Inspection
from undoor.defenses.post_training.perturbations import Descent, RandomDirection
from undoor.defenses.post_training.reverse_engineering import ReverseEngineering

__all__ = ["Descent", "Inspection", "RandomDirection", "ReverseEngineering"]

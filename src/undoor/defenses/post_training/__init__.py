"""Defences that act on a trained network, with some clean images and without the training set."""

from undoor.defenses.post_training.fine_pruning import FinePruning, Pruned

__all__ = ["FinePruning", "Pruned"]

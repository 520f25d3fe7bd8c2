"""Defenses that act at test time: fitted on clean images, they decide which queries to reject."""

from undoor.defenses.test_time.ada import Ada
from undoor.defenses.test_time.controls import max_softmax
from undoor.defenses.test_time.guard import Checked, Guard, classifier_layer

__all__ = ["Ada", "Checked", "Guard", "classifier_layer", "max_softmax"]

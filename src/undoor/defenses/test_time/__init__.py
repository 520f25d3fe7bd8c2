"""Defences that act at test time: fitted on clean images, they say which queries to refuse."""

from undoor.defenses.test_time.ada import Ada
from undoor.defenses.test_time.controls import max_softmax
from undoor.defenses.test_time.guard import Checked, Guard, classifier_layer
from undoor.defenses.test_time.page import render_checked

__all__ = ["Ada", "Checked", "Guard", "classifier_layer", "max_softmax", "render_checked"]

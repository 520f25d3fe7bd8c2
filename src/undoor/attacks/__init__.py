"""Attacks: triggers, and the poisoning of a training set with them."""

from undoor.attacks.one_pixel import OnePixel
from undoor.attacks.poisoning import Attack, poison, read_attack, triggered, write_attack

__all__ = ["Attack", "OnePixel", "poison", "read_attack", "triggered", "write_attack"]

"""Attacks: triggers, and the poisoning of a training set with them."""

from undoor.attacks.pixels import OnePixel, Pixels
from undoor.attacks.poisoning import Attack, chosen_rows, poison, read_attack, triggered, write_attack
from undoor.attacks.trigger import Trigger
from undoor.attacks.variations import Jittered, variations
from undoor.attacks.visibility import linf, psnr

__all__ = [
    "Attack", "Jittered", "OnePixel", "Pixels", "Trigger", "chosen_rows", "linf", "poison", "psnr", "read_attack",
    "triggered", "variations", "write_attack",
]  # fmt: skip

"""The published figures of the experiments that ``undoor bench paper`` repeats."""

from typing import NamedTuple

ORIGIN = "Xiang, Miller and Kesidis, MLSP 2019 (poster), CIFAR-10, ResNet-20, 200 epochs, multiple-source attack"


class Rates(NamedTuple):
    """A true-positive rate and a false-positive rate."""

    tpr: float
    fpr: float


CLEAN_ACCURACY = 0.9118
"""Clean accuracy of a network that was trained on the clean set."""

DENOMINATOR = {"SS": "fpr_target_class", "AC": "fpr_target_class", "CI": "fpr_all_classes"}
"""Which false-positive rate was published: among clean images of the target class, or among those of all classes."""

TABLE_2: dict[float, dict[str, Rates]] = {
    0.15: {"SS": Rates(0.417, 0.5), "AC": Rates(0.570, 0.061), "CI": Rates(0.976, 0.003)},
    0.20: {"SS": Rates(0.436, 0.5), "AC": Rates(0.579, 0.041), "CI": Rates(0.985, 0.001)},
    0.25: {"SS": Rates(0.496, 0.5), "AC": Rates(0.673, 0.100), "CI": Rates(0.991, 0.001)},
    0.30: {"SS": Rates(0.428, 0.5), "AC": Rates(0.867, 0.001), "CI": Rates(0.995, 0.005)},
    0.35: {"SS": Rates(0.588, 0.5), "AC": Rates(0.829, 0.001), "CI": Rates(0.992, 0.003)},
    0.40: {"SS": Rates(0.391, 0.5), "AC": Rates(0.636, 0.036), "CI": Rates(0.984, 0.001)},
}
"""Table 2 by the size of the trigger. The values of Table 1 (single-source attack) were not published."""

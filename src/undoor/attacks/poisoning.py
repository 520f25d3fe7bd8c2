"""Plant a trigger in a training set."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from undoor.attacks.one_pixel import OnePixel
from undoor.dataset import Dataset, Truth, allocate_images, row_ids
from undoor.errors import UndoorError, first_line
from undoor.files import write_text


@dataclass(frozen=True)
class Attack:
    """A backdoor attack on a training set.

    Args:
        trigger: added to every poisoned image, in training and at test time.
        sources: the classes whose images are poisoned.
        target: the class as which they are labelled.
        count: of poisoned images, split over the sources as evenly as possible.
        keep_originals: whether the images that were copied for poisoning stay in the set.
        seed: which images are poisoned.

    """

    trigger: OnePixel
    sources: tuple[str, ...]
    target: str
    count: int
    keep_originals: bool = True
    seed: int = 0

    @classmethod
    def one_pixel(
        cls,
        dataset: Dataset,
        *,
        target: str,
        count: int,
        size: float,
        sources: Sequence[str] | None = None,
        position: tuple[int, int] | None = None,
        keep_originals: bool = True,
        seed: int = 0,
    ) -> "Attack":
        """Return the one-pixel attack on ``dataset``.

        Without ``sources`` it is the multiple-source attack from all other classes; without ``position``
        (row, column) the seed draws one from the central half of the image.
        """
        if sources is None:
            sources = [name for name in dataset.class_names if name != target]
        height, width = dataset.images.shape[2:]
        trigger = OnePixel.drawn(size, height, width, seed) if position is None else OnePixel(*position, size)
        return cls(trigger, tuple(sources), target, count, keep_originals, seed)

    def __post_init__(self) -> None:
        if not self.sources or self.target in self.sources:
            raise UndoorError(
                f"the source classes are {', '.join(self.sources) or 'none'} and the target is {self.target}; "
                "give at least one source, and none that is the target"
            )
        if self.count < 1:
            raise UndoorError(f"{self.count} images are to be poisoned; give a count of at least 1")


def poison(dataset: Dataset, attack: Attack) -> Dataset:
    """Return the poisoned training set, with the truth; the poisoned images come last.

    The ids are row numbers: a poisoned copy has no file of its own.
    """
    target = _class_index(dataset, attack.target)
    generator = np.random.default_rng((attack.seed, 1))
    shares = np.full(len(attack.sources), attack.count // len(attack.sources))
    shares[: attack.count % len(attack.sources)] += 1
    chosen_parts = []
    for name, share in zip(attack.sources, shares, strict=True):
        available = np.flatnonzero(dataset.labels == _class_index(dataset, name))
        if len(available) < share:
            raise UndoorError(
                f"class {name} has {len(available)} images, fewer than the {share} to be poisoned; lower the count"
            )
        chosen_parts.append(np.sort(generator.choice(available, share, replace=False)))
    chosen = np.concatenate(chosen_parts)
    kept = np.arange(len(dataset))
    if not attack.keep_originals:
        kept = np.setdiff1d(kept, chosen)

    n = len(kept) + len(chosen)
    images = allocate_images((n, *dataset.images.shape[1:]))
    np.take(dataset.images, kept, axis=0, out=images[: len(kept)])
    images[len(kept) :] = attack.trigger(dataset.images[chosen])
    labels = dataset.labels[np.concatenate([kept, chosen])]
    truth = Truth(np.arange(n) >= len(kept), labels.copy())
    labels[len(kept) :] = target
    return Dataset(images, labels, dataset.class_names, row_ids(n), truth)


def triggered(test: Dataset, attack: Attack) -> Dataset:
    """Return the test images of the source classes with the trigger; their labels stay the true ones."""
    sources = [_class_index(test, name) for name in attack.sources]
    chosen = test.take(np.isin(test.labels, sources))
    return Dataset(attack.trigger(chosen.images), chosen.labels, chosen.class_names, chosen.ids)


def write_attack(attack: Attack, path: Path) -> None:
    """Write an attack as JSON."""
    write_text(path, json.dumps(asdict(attack), indent=2, ensure_ascii=False) + "\n")


def read_attack(path: Path) -> Attack:
    """Read an attack that ``write_attack`` wrote."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        trigger = OnePixel(**fields.pop("trigger"))
        return Attack(trigger=trigger, sources=tuple(fields.pop("sources")), **fields)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UndoorError(
            f"{path} describes no attack: {first_line(error)}; give undoor poison's attack.json"
        ) from error


def _class_index(dataset: Dataset, name: str) -> int:
    if name not in dataset.class_names:
        raise UndoorError(f"there is no class {name!r}; the classes are {', '.join(dataset.class_names[:20])}")
    return dataset.class_names.index(name)

"""Backdoor attacks: a trigger, and the poisoning of a training set with it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from undoor.attacks.pixels import OnePixel, Pixels
from undoor.attacks.trigger import Trigger
from undoor.data.dataset import Dataset, Truth, allocate_images, row_ids
from undoor.errors import UndoorError, first_line
from undoor.safe.limits import read_json, require_names
from undoor.storage.atomic import write_text

if TYPE_CHECKING:
    from undoor.attacks.optimised import Criterion
    from undoor.networks.classifier import Classifier

KINDS: dict[str, Callable[..., Trigger]] = {kind.__name__: kind for kind in (OnePixel, Pixels)}
"""The kinds of triggers that the file of an attack may contain, by name."""


@dataclass(frozen=True)
class Attack:
    """A backdoor attack on a training set.

    >>> import undoor
    >>> attack = undoor.Attack(undoor.OnePixel(4, 9, 0.3), sources=("7",), target="0", count=20)
    >>> print(attack.trigger)
    pixel 4,9 brighter by 0.3

    Args:
        trigger: the change of the poisoned images, and by default of the images at test time.
        sources: the source classes, whose images are poisoned.
        target: the target class, with which poisoned images are labelled.
        count: the number of poisoned images, divided among the source classes as evenly as possible.
        keep_originals: whether the images from which poisoned copies are made stay in the set.
        seed: the seed of the random choice of images.

    Raises:
        UndoorError: if there is no source class, the target is a source class, ``count`` < 1 or ``seed`` < 0.

    """

    trigger: Trigger
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

        Without ``sources``, all classes but the target are source classes. Without ``position`` (row, column), the
        seed draws a position from the central half of the image.
        """
        height, width = dataset.images.shape[2:]
        trigger = OnePixel.drawn(size, height, width, seed) if position is None else OnePixel(*position, size)
        return cls(trigger, _source_classes(dataset, sources, target), target, count, keep_originals, seed)

    @classmethod
    def optimised(
        cls,
        dataset: Dataset,
        surrogate: "Classifier",
        *,
        target: str,
        count: int,
        size: float,
        pixels: int = 1,
        linf: float | None = None,
        psnr: float | None = None,
        criterion: "Criterion" = "prominence",
        sources: Sequence[str] | None = None,
        keep_originals: bool = True,
        seed: int = 0,
    ) -> "Attack":
        """Return the attack whose trigger is the best within bounds on the image quality.

        ``surrogate`` was trained on clean images. ``size``, ``pixels``, ``linf``, ``psnr`` and ``criterion`` are those
        of ``undoor.attacks.optimised.optimised``; the bounds hold on every image of the source classes. Without
        ``sources``, these are all classes but the target.
        """
        from undoor.attacks.optimised import optimised  # here, because it loads PyTorch

        names = _source_classes(dataset, sources, target)
        eligible = np.isin(dataset.labels, [_class_index(dataset, name) for name in names])
        trigger = optimised(
            dataset.images, eligible, surrogate, size=size, pixels=pixels, linf=linf, psnr=psnr,
            criterion=criterion, target=_class_index(dataset, target), seed=seed,
        )  # fmt: skip
        return cls(trigger, names, target, count, keep_originals, seed)

    def __post_init__(self) -> None:
        if not self.sources or self.target in self.sources:
            raise UndoorError(
                f"the source classes are {', '.join(self.sources) or 'none'} and the target is {self.target}; "
                "give at least one source, and none that is the target"
            )
        if self.count < 1:
            raise UndoorError(f"{self.count} images are to be poisoned; give a count of at least 1")
        if self.seed < 0:
            raise UndoorError(f"the seed is {self.seed}; give 0 or more")


def _source_classes(dataset: Dataset, sources: Sequence[str] | None, target: str) -> tuple[str, ...]:
    return tuple(name for name in dataset.class_names if name != target) if sources is None else tuple(sources)


def _class_index(dataset: Dataset, name: str) -> int:
    if name not in dataset.class_names:
        raise UndoorError(f"there is no class {name!r}; the classes are {', '.join(dataset.class_names[:20])}")
    return dataset.class_names.index(name)


def chosen_rows(dataset: Dataset, attack: Attack) -> NDArray[np.int64]:
    """Return (count,) the rows of the images that are poisoned, one source class after another."""
    _class_index(dataset, attack.target)
    generator = np.random.default_rng((attack.seed, 1))
    shares = np.full(len(attack.sources), attack.count // len(attack.sources))
    shares[: attack.count % len(attack.sources)] += 1
    chosen = []
    for name, share in zip(attack.sources, shares, strict=True):
        available = np.flatnonzero(dataset.labels == _class_index(dataset, name))
        if len(available) < share:
            raise UndoorError(
                f"class {name} has {len(available)} images, fewer than the {share} to be poisoned; lower the count"
            )
        chosen.append(np.sort(generator.choice(available, share, replace=False)))
    return np.concatenate(chosen)


def poison(dataset: Dataset, attack: Attack) -> Dataset:
    """Return the poisoned training set, with its truth.

    The poisoned images come last, in the order of ``chosen_rows``. The ids are row numbers, because a poisoned copy has
    no file.

    >>> import numpy as np, undoor
    >>> images, labels = np.zeros((4, 1, 2, 2), np.uint8), np.array([0, 0, 1, 1])
    >>> data = undoor.Dataset(images, labels, ("cat", "dog"), np.array(["a", "b", "c", "d"]))
    >>> attack = undoor.Attack(undoor.OnePixel(0, 1, 0.2), sources=("cat",), target="dog", count=1)
    >>> poisoned = undoor.poison(data, attack)
    >>> poisoned.labels.tolist(), poisoned.images[-1, 0].tolist()
    ([0, 0, 1, 1, 1], [[0, 51], [0, 0]])

    Raises:
        UndoorError: if the set lacks a class of the attack, or a source class has too few images.

    """
    chosen = chosen_rows(dataset, attack)
    kept = np.arange(len(dataset))
    if not attack.keep_originals:
        kept = np.setdiff1d(kept, chosen)

    n = len(kept) + len(chosen)
    images = allocate_images((n, *dataset.images.shape[1:]))
    np.take(dataset.images, kept, axis=0, out=images[: len(kept)])
    images[len(kept) :] = attack.trigger(dataset.images[chosen])
    labels = dataset.labels[np.concatenate([kept, chosen])]
    truth = Truth(np.arange(n) >= len(kept), labels.copy())
    labels[len(kept) :] = dataset.class_names.index(attack.target)
    return Dataset(images, labels, dataset.class_names, row_ids(n), truth)


def triggered(test: Dataset, attack: Attack, trigger: Trigger | None = None) -> Dataset:
    """Return the test images of the source classes with the trigger; their labels stay the true ones.

    The attack success rate is the share of these images that a network assigns to the target class.

    >>> import numpy as np, undoor
    >>> images, labels = np.zeros((2, 1, 2, 2), np.uint8), np.array([0, 1])
    >>> test = undoor.Dataset(images, labels, ("cat", "dog"), np.array(["a", "b"]))
    >>> attack = undoor.Attack(undoor.OnePixel(0, 1, 0.2), sources=("cat",), target="dog", count=1)
    >>> shown = undoor.triggered(test, attack)
    >>> shown.labels.tolist(), shown.images[:, 0].tolist()
    ([0], [[[0, 51], [0, 0]]])

    Args:
        test: the test set.
        attack: the attack on the training set.
        trigger: by default the trigger of the attack; ``undoor.attacks.variations`` returns others.

    """
    sources = [_class_index(test, name) for name in attack.sources]
    chosen = test.take(np.isin(test.labels, sources))
    images = (trigger or attack.trigger)(chosen.images)
    return Dataset(images, chosen.labels, chosen.class_names, chosen.ids)


def write_attack(attack: Attack, path: Path) -> None:
    """Write an attack and the kind of its trigger as JSON; raise ``UndoorError`` if the kind is not in ``KINDS``."""
    kind = type(attack.trigger).__name__
    if KINDS.get(kind) is not type(attack.trigger):
        raise UndoorError(f"a trigger of kind {kind} cannot be written; give one of {', '.join(KINDS)}")
    fields = asdict(attack)
    fields["trigger"] = {"kind": kind, **fields["trigger"]}
    write_text(path, json.dumps(fields, indent=2, ensure_ascii=False) + "\n")


def read_attack(path: Path) -> Attack:
    """Read an attack that ``write_attack`` wrote; a trigger without a kind is a ``OnePixel``."""
    try:
        fields = read_json(path)
        trigger = fields.pop("trigger")
        kind = KINDS[trigger.pop("kind", "OnePixel")]
        sources, target = fields.pop("sources"), fields.pop("target")
        require_names([*sources, target], "class name")
        if not all(type(fields[name]) is int for name in ("count", "seed") if name in fields):
            raise ValueError("count and seed are whole numbers")
        return Attack(kind(**_tuples(trigger)), tuple(sources), target, **fields)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UndoorError(
            f"{path} describes no attack: {first_line(error)}; give undoor poison's attack.json"
        ) from error


def _tuples(value: Any) -> Any:
    """Return plain values with tuples where JSON has lists."""
    if isinstance(value, dict):
        return {name: _tuples(part) for name, part in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value

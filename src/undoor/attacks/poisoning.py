"""Plant a trigger in a training set."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from undoor.attacks.one_pixel import OnePixel
from undoor.attacks.pixels import Pixels
from undoor.attacks.trigger import Trigger
from undoor.data.dataset import Dataset, Truth, allocate_images, row_ids
from undoor.errors import UndoorError, first_line
from undoor.safe.limits import read_json, require_names
from undoor.storage.atomic import write_text

if TYPE_CHECKING:
    from undoor.attacks.optimised import Criterion
    from undoor.networks.classifier import Classifier

KINDS: dict[str, Callable[..., Trigger]] = {kind.__name__: kind for kind in (OnePixel, Pixels)}
"""The triggers that an attack's file may name."""


@dataclass(frozen=True)
class Attack:
    """A backdoor attack on a training set.

    Args:
        trigger: added to every poisoned image, in training and, unless another is asked for, at test time.
        sources: the classes whose images are poisoned.
        target: the class as which they are labelled.
        count: of poisoned images, split over the sources as evenly as possible.
        keep_originals: whether the images that were copied for poisoning stay in the set.
        seed: which images are poisoned.

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

        Without ``sources`` it is the multiple-source attack from all other classes; without ``position``
        (row, column) the seed draws one from the central half of the image.
        """
        if sources is None:
            sources = [name for name in dataset.class_names if name != target]
        height, width = dataset.images.shape[2:]
        trigger = OnePixel.drawn(size, height, width, seed) if position is None else OnePixel(*position, size)
        return cls(trigger, tuple(sources), target, count, keep_originals, seed)

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
        """Return the attack whose position, channels and signs promise most, within bounds of the image quality.

        ``surrogate`` was trained on clean images; ``size``, ``pixels``, ``linf`` (of 1), ``psnr`` (in dB) and
        ``criterion`` as in ``undoor.attacks.optimised.optimised``. The bounds hold on every image of the source
        classes; without ``sources``, these are all classes but the target.
        """
        from undoor.attacks.optimised import optimised  # which loads PyTorch

        if sources is None:
            sources = [name for name in dataset.class_names if name != target]
        eligible = np.isin(dataset.labels, [_class_index(dataset, name) for name in sources])
        trigger = optimised(
            dataset.images, eligible, surrogate, size=size, pixels=pixels, linf=linf, psnr=psnr,
            criterion=criterion, target=_class_index(dataset, target), seed=seed,
        )  # fmt: skip
        return cls(trigger, tuple(sources), target, count, keep_originals, seed)

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


def chosen_rows(dataset: Dataset, attack: Attack) -> NDArray[np.int64]:
    """Return (count,) the rows of the images that are poisoned, source by source."""
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
    """Return the poisoned training set, with the truth; the poisoned images come last, in the order of chosen_rows.

    The ids are row numbers: a poisoned copy has no file of its own.
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

    Args:
        test: the test set.
        attack: what was done in training.
        trigger: by default the attack's own; ``undoor.attacks.variations`` makes others of it.

    """
    sources = [_class_index(test, name) for name in attack.sources]
    chosen = test.take(np.isin(test.labels, sources))
    images = (trigger or attack.trigger)(chosen.images)
    return Dataset(images, chosen.labels, chosen.class_names, chosen.ids)


def write_attack(attack: Attack, path: Path) -> None:
    """Write an attack as JSON, the kind of its trigger with it."""
    kind = type(attack.trigger).__name__
    if KINDS.get(kind) is not type(attack.trigger):
        raise UndoorError(f"a trigger of kind {kind} cannot be written; give one of {', '.join(KINDS)}")
    fields = asdict(attack)
    fields["trigger"] = {"kind": kind, **fields["trigger"]}
    write_text(path, json.dumps(fields, indent=2, ensure_ascii=False) + "\n")


def read_attack(path: Path) -> Attack:
    """Read an attack that ``write_attack`` wrote; a trigger without a kind is one pixel."""
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
    """Return plain values as they were before JSON made lists of tuples."""
    if isinstance(value, dict):
        return {name: _tuples(part) for name, part in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _class_index(dataset: Dataset, name: str) -> int:
    if name not in dataset.class_names:
        raise UndoorError(f"there is no class {name!r}; the classes are {', '.join(dataset.class_names[:20])}")
    return dataset.class_names.index(name)

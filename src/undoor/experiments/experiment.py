"""One experiment: the attack, the poisoned training set, the victim, and the evidence that the victim yields."""

import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import nn

from undoor.attacks import Attack, poison
from undoor.data.dataset import Dataset, Truth
from undoor.evidence import Evidence
from undoor.evidence.collect import collect
from undoor.experiments.cells import Cell, Setting
from undoor.experiments.contenders import EVIDENCE_VERSION, Case
from undoor.experiments.packed import Result
from undoor.experiments.store import Store, digest, hardware
from undoor.filters import Average, Filter
from undoor.findings.provenance import versions
from undoor.networks.classifier import Classifier
from undoor.networks.recipes import Recipe
from undoor.networks.training import succeeded
from undoor.networks.victims import Wanted, fit_victims


@dataclass(frozen=True, eq=False)
class Experiment:
    """A cell in its setting, with the store of its results.

    Args:
        cell: what is attacked.
        setting: what the cell shares with others.
        store: where networks and outputs are kept.
        filters: all image filters of the contenders, so that one pass over the images serves them all.
        check: is called by long work whenever it makes progress; it ends that work by an exception.

    """

    cell: Cell
    setting: Setting
    store: Store
    filters: tuple[Filter, ...] = (Average(),)
    check: Callable[..., None] = lambda *_: None

    @cached_property
    def attack(self) -> Attack | None:
        """The attack; None in the clean scenario."""
        cell, setting = self.cell, self.setting
        if cell.scenario == "clean":
            return None
        return Attack.one_pixel(
            setting.train,
            target=setting.target,
            count=setting.count,
            size=cell.size,
            sources=[setting.source] if cell.scenario == "single-source" else None,
            keep_originals=cell.keep_originals,
            seed=cell.seed,
        )

    @cached_property
    def training_set(self) -> Dataset:
        """The training set of the victim, with its truth."""
        if self.attack is not None:
            return poison(self.setting.train, self.attack)
        clean = self.setting.train
        return replace(clean, truth=Truth(np.zeros(len(clean), np.bool_), clean.labels))

    @cached_property
    def victim_key(self) -> str:
        """The key of the victim in the store."""
        return self._network_key(self.training_set)

    @cached_property
    def network(self) -> nn.Module:
        """The victim. It is trained if the store does not hold it."""
        return self.fitted(self.wanted_victim())

    def wanted_victim(self) -> Wanted:
        """Return what has to be trained as the victim, and the file it is kept in."""
        return Wanted(self.training_set, self._recipe, self.store.network(self.victim_key), self.setting.network)

    def wanted_without(self, flagged: NDArray[np.bool_]) -> Wanted:
        """Return what has to be trained without the flagged rows, (N,) bool, and the file it is kept in."""
        kept = self.training_set.take(~flagged)
        key = self._network_key(kept)
        # Without exactly the poisoned images the set is the clean one: that network may be there as a victim.
        path = self.store.network(key)
        if not path.exists():  # Another cell may be training the same network now, so each has a file of its own.
            path = self.store.path("cache", f"{key}-{self.cell.name}", ".safetensors")
        return Wanted(kept, self._recipe, path, self.setting.network)

    def fitted(self, wanted: Wanted) -> nn.Module:
        """Return a network, which is trained if its file does not exist; raise ``DivergedError`` if that fails."""
        return succeeded(fit_victims([wanted], on_step=self.check)[0])

    @property
    def _recipe(self) -> Recipe:
        return replace(self.setting.recipe, seed=self.cell.seed)

    def _network_key(self, dataset: Dataset) -> str:
        # The precision that a recipe is computed in depends on the processor, which the results name.
        content = {"data": dataset.fingerprint(), "recipe": asdict(self._recipe), "network": self.setting.network_name}
        return digest(content)

    def described(self) -> Result:
        """Return what every result of this experiment says about its origin, as plain values."""
        return {
            "cell": asdict(self.cell),
            "name": self.cell.name,
            "suite": self.setting.suite,
            "data": self.setting.data,
            "train_images": len(self.setting.train),
            "test_images": len(self.setting.test),
            "attack": None if self.attack is None else asdict(self.attack),
            "recipe": asdict(self._recipe),
            "network": self.setting.network_name,
            "hardware": hardware(),
            "versions": versions(),
            "platform": platform.system(),
        }

    def evidence(self, image_filter: Filter) -> Evidence:
        """Return the outputs of the victim on the training images and on their filtered twins."""
        data, store = self.training_set, self.store
        if not all(store.has_outputs(self._outputs_key(h)) for h in (None, image_filter)):
            missing = [h for h in {*self.filters, image_filter} if not store.has_outputs(self._outputs_key(h))]
            collected = collect(Classifier(self.network), data, missing)
            for h in missing:
                store.keep_outputs(self._outputs_key(h), collected.filtered[str(h)])
            store.keep_outputs(self._outputs_key(None), collected.plain)
        plain, filtered = (store.outputs(self._outputs_key(h)) for h in (None, image_filter))
        return Evidence(plain, {str(image_filter): filtered}, data.labels, data.ids, data.class_names)

    def _outputs_key(self, image_filter: Filter | None) -> str:
        return digest({"victim": self.victim_key, "filter": str(image_filter), "version": EVIDENCE_VERSION})

    def case(self) -> Case:
        """Return what the contenders are given."""
        return Case(
            seed=self.cell.seed,
            training_set=self.training_set,
            test=self.setting.test,
            attack=self.attack,
            network=lambda: Classifier(self.network),
            evidence=self.evidence,
            decisions_without=self._decisions_without,
            check=self.check,
        )

    def _decisions_without(self, kept: NDArray[np.bool_]) -> NDArray[np.int64]:
        network = self.fitted(self.wanted_without(~kept))
        return Classifier(network).decide(self.training_set.images)

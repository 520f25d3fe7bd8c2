"""One experiment: attack → victim → what each defence finds → retraining without what it flagged."""

import platform
import re
from base64 import b64encode
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib import import_module
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

import undoor.filters
import undoor.mixtures.em
import undoor.mixtures.partitions
import undoor.mixtures.reduction
import undoor.mixtures.sweep
import undoor.networks.classifier
from undoor.attacks import Attack, poison, triggered
from undoor.data.dataset import Dataset, Truth
from undoor.evidence import Evidence
from undoor.evidence.collect import collect
from undoor.experiments.condensed import condensed
from undoor.experiments.contenders import Contender, Known, plain_settings
from undoor.experiments.examinations import Case, Examination, timed
from undoor.experiments.measure import measure
from undoor.experiments.store import Result, Store, code_digest, digest, hardware, unpack
from undoor.filters import Average, Filter
from undoor.findings.findings import Findings
from undoor.findings.metrics import attack_success_rate
from undoor.findings.provenance import versions
from undoor.networks.architectures import default_network
from undoor.networks.classifier import Classifier
from undoor.networks.recipes import Recipe
from undoor.networks.training import DivergedError, succeeded
from undoor.networks.victims import Wanted, fit_victims
from undoor.safe.images import encode_png

MIXTURES = (undoor.mixtures.sweep, undoor.mixtures.reduction, undoor.mixtures.partitions, undoor.mixtures.em)
"""The code on which the clusters of a class depend."""

Scenario = Literal["single-source", "multiple-source", "clean"]

EXAMINED_SIZES = (0.25, 0.40)


@dataclass(frozen=True)
class Cell:
    """What is attacked and how; everything else of an experiment is the suite's.

    Args:
        scenario: images of one class are poisoned, of all but the target, or none.
        size: of the trigger; 0 in the clean scenario.
        seed: of the attack, the training and the defences.
        keep_originals: whether the images that were copied for poisoning stay in the set.
        ablations: whether the variants of the defences are tried too, not only the defences themselves.

    """

    scenario: Scenario
    size: float = 0.0
    seed: int = 0
    keep_originals: bool = True
    ablations: bool = False

    @property
    def examined(self) -> bool:
        """Whether defences of other moments are tried: not at every size, for they ask for minutes a network."""
        return self.keep_originals and (self.scenario == "clean" or self.size in EXAMINED_SIZES)

    @property
    def name(self) -> str:
        """Such as ``multiple-source-0.25-s0``."""
        size = "" if self.scenario == "clean" else f"-{self.size:.2f}"
        return f"{self.scenario}{size}{'' if self.keep_originals else '-replaced'}-s{self.seed}"


@dataclass(frozen=True)
class Setting:
    """What all cells of a suite share.

    Args:
        suite: its name.
        data: the name of the data.
        train: the clean training set.
        test: the clean test set.
        source: the class that is poisoned in the single-source scenario.
        target: the class as which poisoned images are labelled.
        count: of poisoned images.
        recipe: how networks are trained; the cell's seed replaces its own.
        network: a name from ``undoor.networks.architectures``; by default what fits the images.
        test_sizes: of the trigger at test time, measured in cells with ablations.

    """

    suite: str
    data: str
    train: Dataset
    test: Dataset
    source: str
    target: str
    count: int
    recipe: Recipe
    network: str | None = None
    test_sizes: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Experiment:
    """A cell in its setting, with the store that keeps its results.

    Every method asks the store first, so that nothing is computed twice; what is missing is made.

    Args:
        cell: what is attacked and how.
        setting: what the cell shares with others.
        store: where results are kept.
        filters: all that will be asked for, so that one pass over the images serves them all.
        check: called whenever a long piece of work tells how far it is; by an exception it ends that work.

    """

    cell: Cell
    setting: Setting
    store: Store
    filters: tuple[Filter, ...] = (Average(),)
    check: Callable[..., None] = lambda *_: None

    @cached_property
    def attack(self) -> Attack | None:
        """The attack, or None in the clean scenario."""
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
        """The poisoned training set, with the truth."""
        if self.attack is not None:
            return poison(self.setting.train, self.attack)
        clean = self.setting.train
        return replace(clean, truth=Truth(np.zeros(len(clean), np.bool_), clean.labels))

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe with the cell's seed."""
        return replace(self.setting.recipe, seed=self.cell.seed)

    @cached_property
    def victim_key(self) -> str:
        """The name of the victim in the store."""
        return self._network_key(self.training_set)

    def _network_key(self, dataset: Dataset) -> str:
        network = self.setting.network or default_network(*dataset.images.shape[2:])
        # In which precision a recipe is computed depends on the processor and is told in the results.
        return digest({"data": dataset.fingerprint(), "recipe": asdict(self.recipe), "network": network})

    @cached_property
    def network(self) -> nn.Module:
        """The victim; trained if it is not in the store."""
        return self._fitted(self.wanted_victim())

    def _fitted(self, wanted: Wanted) -> nn.Module:
        return succeeded(fit_victims([wanted], on_step=self.check)[0])

    def wanted_victim(self) -> Wanted:
        """Return what is to be trained as the victim."""
        path = self.store.path("victims", self.victim_key, ".safetensors")
        return Wanted(self.training_set, self.recipe, path, self.setting.network)

    def has_victim(self) -> bool:
        """Whether the victim is trained and measured."""
        return self.store.path("victims", self.victim_key).exists()

    def has_network(self, wanted: Wanted) -> bool:
        """Whether there is nothing to train: the network is in its file, or its training diverged."""
        return wanted.path.exists() or self.has_diverged(wanted)

    def has_diverged(self, wanted: Wanted) -> bool:
        """Whether the training of a network was ended by a loss that was no number."""
        return self.store.path("diverged", wanted.path.stem).exists()

    def keep_divergence(self, wanted: Wanted, error: DivergedError) -> None:
        """Keep that a training diverged, so that it is not tried again."""
        self.store.write("diverged", wanted.path.stem, {**self._described(), "problem": str(error)})

    def victim(self, seconds: float | None = None) -> Result:
        """Measure the victim: clean accuracy, attack success, also at other sizes. ``seconds``: of its training."""
        known = self.store.read("victims", self.victim_key)
        if known is not None:
            return known
        return self.store.write(
            "victims",
            self.victim_key,
            {
                **self._described(),
                **measure(self.network, self.setting.test, self.attack),
                "attack_success_by_size": self._success_by_size(self.network),
                "pictures": self._pictures(),
                "seconds": seconds,
            },
        )

    def _described(self) -> Result:
        return {
            "cell": asdict(self.cell),
            "name": self.cell.name,
            "suite": self.setting.suite,
            "data": self.setting.data,
            "train_images": len(self.setting.train),
            "test_images": len(self.setting.test),
            "attack": None if self.attack is None else asdict(self.attack),
            "recipe": asdict(self.recipe),
            "network": self.setting.network or default_network(*self.setting.train.images.shape[2:]),
            "hardware": hardware(),
            "versions": versions(),
            "platform": platform.system(),
        }

    def _success_by_size(self, network: nn.Module) -> dict[str, float]:
        if self.attack is None or not self.cell.ablations:
            return {}
        classifier = Classifier(network)
        target = self.setting.test.class_names.index(self.attack.target)
        rates = {}
        for size in self.setting.test_sizes:
            other = self.attack.trigger.resized(size)
            decisions = classifier.decide(triggered(self.setting.test, self.attack, other).images)
            rates[f"{size:.2f}"] = attack_success_rate(decisions, target)
        return rates

    def _pictures(self) -> list[str]:
        """Return a test image of a source class without and with the trigger, as PNG."""
        if self.attack is None:
            return []
        source = self.setting.test.class_names.index(self.attack.sources[0])
        image = self.setting.test.images[np.flatnonzero(self.setting.test.labels == source)[:1]]
        return [b64encode(encode_png(one[0])).decode() for one in (image, self.attack.trigger(image))]

    def evidence(self, image_filter: Filter) -> Evidence:
        """Return what the victim makes of the training images and of their filtered twins."""
        data = self.training_set
        if not all(self.store.has_outputs(self._outputs_key(h)) for h in (None, image_filter)):
            wanted = [h for h in {*self.filters, image_filter} if not self.store.has_outputs(self._outputs_key(h))]
            made = collect(Classifier(self.network), data, wanted)
            for h in wanted:
                self.store.keep_outputs(self._outputs_key(h), made.filtered[str(h)])
            self.store.keep_outputs(self._outputs_key(None), made.plain)
        plain, filtered = (self.store.outputs(self._outputs_key(h)) for h in (None, image_filter))
        return Evidence(plain, {str(image_filter): filtered}, data.labels, data.ids, data.class_names)

    def _outputs_key(self, image_filter: Filter | None) -> str:
        code = code_digest(undoor.filters, undoor.networks.classifier)
        return digest({"victim": self.victim_key, "filter": str(image_filter), "code": code})

    def findings(self, contender: Contender, known: Known) -> Result:
        """Run a defence and count its hits and false alarms against the truth."""
        done = self.kept_findings(contender, known)
        if done is None:
            defense = contender.build(known)
            found = defense(self.evidence(contender.image_filter)).against(known.poisoned)
            described = {
                **self._described(),
                "contender": contender.name,
                "oracle": contender.oracle,
                "retrain": contender.retrain,
                "filter": str(contender.image_filter),
                "victim": self.victim_key,
                "depends": _depends(contender, defense),
            }
            done = self.store.write(
                "findings", self._findings_key(contender), {**described, **condensed(found, known.poisoned)}
            )
        known.flagged[contender.name] = done["flagged"]
        return done

    def kept_findings(self, contender: Contender, known: Known) -> Result | None:
        """Return what the store holds of a defence; None if that is nothing, or of other settings or code."""
        done = self.store.read("findings", self._findings_key(contender))
        if done is None or done["depends"] != _depends(contender, contender.build(known)):
            return None
        known.flagged[contender.name] = done["flagged"]
        return done

    def _findings_key(self, contender: Contender) -> str:
        return f"{self.victim_key}-{slug(contender.name)}"

    def examined(self, examination: Examination) -> Result:
        """Try a defence of another moment on the victim."""
        depends = digest({"name": examination.name, "code": code_digest(*examination.code)})
        key = f"{self.victim_key}-{slug(examination.name)}"
        done = self.store.read("examined", key)
        if done is None or done["depends"] != depends:
            case = Case.halved(Classifier(self.network), self.setting.test, self.attack, self.cell.seed, self.check)
            described = {
                **self._described(),
                "examination": examination.name,
                "moment": examination.moment,
                "needs": examination.needs,
                "control_of": examination.control_of,
                "victim": self.victim_key,
                "depends": depends,
            }
            done = self.store.write("examined", key, {**described, **timed(examination, case)})
        return done

    def known(self) -> Known:
        """Return what the experimenter knows of this cell."""
        truth = self.training_set.truth
        assert truth is not None  # noqa: S101 - training_set always has it
        target = None if self.attack is None else self.attack.target
        poisoned = self.training_set
        return Known(
            self.cell.seed, truth.poisoned, poisoned.labels, target, self._decisions_without,
            lambda: Classifier(self.network), poisoned.images, check=self.check,
        )  # fmt: skip

    def _decisions_without(self, kept: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return the decisions on all training images of a network that was trained on those kept."""
        network = self._fitted(self._wanted(self.training_set.take(kept)))
        return Classifier(network).decide(self.training_set.images)

    def wanted_retraining(self, found: Result) -> Wanted | None:
        """Return what is to be trained without what was flagged; None if that is the victim, or done."""
        if found["flagged"] == 0 or self.store.path("retrained", retrained_key(found)).exists():
            return None
        return self._wanted(self._kept(found))

    def _kept(self, found: Result) -> Dataset:
        return self.training_set.take(~unpack(found["mask"], len(self.training_set)))

    def _wanted(self, kept: Dataset) -> Wanted:
        key = self._network_key(kept)
        # Without exactly the poisoned images, a set is what it was before: the clean victim was trained on it.
        path = self.store.path("victims", key, ".safetensors")
        if not path.exists():  # another cell that wants it too may be at work now: each has its own
            path = self.store.path("cache", f"{key}-{self.cell.name}", ".safetensors")
        return Wanted(kept, self.recipe, path, self.setting.network)

    def retraining(self, found: Result, seconds: float | None = None) -> Result:
        """Train without what was flagged, and measure clean accuracy and attack success again.

        Where nothing is flagged it is the victim. ``seconds``: of the training, if it is done already.
        """
        if found["flagged"] == 0:
            return self.victim()
        key = retrained_key(found)
        done = self.store.read("retrained", key)
        if done is None:
            wanted = self._wanted(self._kept(found))
            done = self.store.write(
                "retrained",
                key,
                {
                    **self._described(),
                    **measure(self._fitted(wanted), self.setting.test, self.attack),
                    "kept": len(wanted.dataset),
                    "seconds": seconds,
                },
            )
            self.store.path("cache", wanted.path.stem, ".safetensors").unlink(missing_ok=True)
        return done


def slug(name: str) -> str:
    """Return a name as part of a file's name."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower().replace("ε", "eps")).strip("-")


def retrained_key(found: Result) -> str:
    """Return the name in the store of the network that is trained without what was flagged."""
    return digest({"victim": found["victim"], "mask": found["mask"]})


def _depends(contender: Contender, defense: Callable[[Evidence], Findings]) -> str:
    """Return a hash of all that decides what a contender finds on a victim."""
    return digest(
        {
            "filter": str(contender.image_filter),
            "settings": plain_settings(defense),
            "code": code_digest(_module(defense), *MIXTURES, undoor.filters),
        }
    )


def _module(defense: Any) -> Any:
    return import_module(getattr(defense, "func", type(defense)).__module__)

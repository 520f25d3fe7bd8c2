"""The results of one cell. Each is taken from the store if it is there, and made and kept if not.

The victim is measured; every contender is run on the victim; the network is trained again without what a contender
flagged, and measured.
"""

import time
from base64 import b64encode
from dataclasses import asdict, replace

import numpy as np
from torch import nn

from undoor.attacks import triggered
from undoor.experiments.contenders import Case, Contender
from undoor.experiments.experiment import Experiment
from undoor.experiments.measure import measure
from undoor.experiments.outcome import mask_from_text
from undoor.experiments.packed import Result
from undoor.experiments.store import digest
from undoor.findings.metrics import attack_success_rate
from undoor.networks.classifier import Classifier
from undoor.networks.training import DivergedError
from undoor.networks.victims import Wanted
from undoor.safe.images import encode_png

MEASUREMENT_VERSION = 1
"""Version of the measurement of a network. Raise it when ``measure`` or this module measures something else."""


def stored_victim(experiment: Experiment) -> Result | None:
    """Return what was measured of the victim; None if it has not been trained and measured."""
    return _stored_measurement(experiment, "victims", experiment.victim_key)


def measured_victim(experiment: Experiment, seconds: float | None = None) -> Result:
    """Measure the victim, with triggers of other sizes too; ``seconds`` is how long its training took."""
    result = stored_victim(experiment)
    if result is not None:
        return result
    return experiment.store.write(
        "victims",
        experiment.victim_key,
        {
            **_measurement(experiment, experiment.network, seconds),
            "attack_success_by_size": _success_by_size(experiment),
            "pictures": _pictures(experiment),
        },
    )


def stored_result(experiment: Experiment, contender: Contender, case: Case) -> Result | None:
    """Return what a contender found on the victim; None if nothing is stored or it depends on something else now."""
    result = experiment.store.read(contender.kind, _key(experiment, contender))
    if result is None or result["depends"] != contender.depends(case, experiment.victim_key):
        return None
    case.flagged[contender.name] = result["flagged"] or 0
    return result


def contender_result(experiment: Experiment, contender: Contender, case: Case) -> Result:
    """Run a contender on the victim and keep what it found."""
    result = stored_result(experiment, contender, case)
    if result is not None:
        return result
    depends, begun = contender.depends(case, experiment.victim_key), time.perf_counter()
    outcome = contender.run(contender.build(case), case)
    if outcome.seconds is None:
        outcome = replace(outcome, seconds=round(time.perf_counter() - begun, 2))
    case.flagged[contender.name] = outcome.flagged or 0
    return experiment.store.write(
        contender.kind,
        _key(experiment, contender),
        {
            **experiment.described(),
            "victim": experiment.victim_key,
            "contender": contender.name,
            "moment": contender.moment,
            "needs": contender.needs,
            "oracle": contender.oracle,
            "retrain": contender.retrain,
            "control_of": contender.control_of,
            "filter": None if contender.image_filter is None else str(contender.image_filter),
            **contender.versions,
            "depends": depends,
            **asdict(outcome),
        },
    )


def wanted_retraining(experiment: Experiment, result: Result) -> Wanted | None:
    """Return what has to be trained without what a contender flagged.

    None if nothing was flagged, for that network is the victim, or if the network was measured before.
    """
    if result["flagged"] == 0 or _stored_measurement(experiment, "retrained", retrained_key(result)) is not None:
        return None
    return experiment.wanted_without(mask_from_text(result["mask"], result["samples"]))


def measured_retraining(experiment: Experiment, result: Result, seconds: float | None = None) -> Result:
    """Measure the network that is trained without what a contender flagged.

    If nothing was flagged that is the victim. ``seconds`` is how long the training took.
    """
    if result["flagged"] == 0:
        return measured_victim(experiment)
    key = retrained_key(result)
    wanted = wanted_retraining(experiment, result)
    if wanted is not None:
        measurement = _measurement(experiment, experiment.fitted(wanted), seconds)
        experiment.store.write("retrained", key, {**measurement, "kept": len(wanted.dataset)})
        experiment.store.path("cache", wanted.path.stem, ".safetensors").unlink(missing_ok=True)
    return experiment.store.read("retrained", key) or {}


def retrained_key(result: Result) -> str:
    """Return the key of the network that is trained without what a contender flagged."""
    return digest({"victim": result["victim"], "mask": result["mask"]})


def has_diverged(experiment: Experiment, wanted: Wanted) -> bool:
    """Whether the training of a network ended with a loss that is no number."""
    return experiment.store.read("diverged", wanted.path.stem) is not None


def keep_divergence(experiment: Experiment, wanted: Wanted, error: DivergedError) -> None:
    """Keep that a training diverged, so that it is not tried again."""
    experiment.store.write("diverged", wanted.path.stem, {**experiment.described(), "problem": str(error)})


def _key(experiment: Experiment, contender: Contender) -> str:
    return f"{experiment.victim_key}-{contender.slug}"


def _stored_measurement(experiment: Experiment, kind: str, key: str) -> Result | None:
    result = experiment.store.read(kind, key)
    return None if result is None or result.get("method_version") != MEASUREMENT_VERSION else result


def _measurement(experiment: Experiment, network: nn.Module, seconds: float | None) -> Result:
    return {
        **experiment.described(),
        **measure(network, experiment.setting.test, experiment.attack),
        "method_version": MEASUREMENT_VERSION,
        "seconds": seconds,
    }


def _success_by_size(experiment: Experiment) -> dict[str, float]:
    """Return the attack success rate of triggers of other sizes, in cells with ablations."""
    attack, test = experiment.attack, experiment.setting.test
    if attack is None or not experiment.cell.ablations:
        return {}
    classifier, target, rates = Classifier(experiment.network), test.class_names.index(attack.target), {}
    for size in experiment.setting.test_sizes:
        decisions = classifier.decide(triggered(test, attack, attack.trigger.resized(size)).images)
        rates[f"{size:.2f}"] = attack_success_rate(decisions, target)
    return rates


def _pictures(experiment: Experiment) -> list[str]:
    """Return a test image of a source class without and with the trigger, as PNG in base64; none without an attack."""
    attack, test = experiment.attack, experiment.setting.test
    if attack is None:
        return []
    source = test.class_names.index(attack.sources[0])
    image = test.images[np.flatnonzero(test.labels == source)[:1]]
    return [b64encode(encode_png(images[0])).decode() for images in (image, attack.trigger(image))]

"""The command ``undoor prune``."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from undoor.cli.options import FORMATS, TEST_SPLIT, AttackFile, Model, ModelOptions, Overwrite, ReadingOptions, Seed
from undoor.errors import UndoorError, UndoorNotice, require_extra

if TYPE_CHECKING:
    from undoor.attacks import Attack
    from undoor.data.dataset import Dataset
    from undoor.defenses.post_training import Pruned

CURVE_IMAGES = 1000
"""At most this many triggered images are decided at every step of the pruning curve, which would otherwise be slow."""


def prune(
    model: Model,
    *,
    data: Annotated[str, Option(help=f"Clean images of every class, not those of the training: {FORMATS}.")],
    out: Annotated[Path, Option(help="The .safetensors file for the repaired network.")],
    layer: Annotated[
        str | None, Option(help="The convolution whose channels are pruned. By default the last one that runs.")
    ] = None,
    tolerance: Annotated[
        float | None, Option(help="How far pruning may lower the clean accuracy. By default 0.04.")
    ] = None,
    ranking: Annotated[
        str, Option(help="Channels to prune first: dormant (least active on clean images) or random (a control).")
    ] = "dormant",
    epochs: Annotated[int | None, Option(min=1, metavar="N", help="Epochs of fine-tuning. By default 20.")] = None,
    learning_rate: Annotated[float | None, Option(help="Highest rate of fine-tuning. By default 0.05.")] = None,
    augment: Annotated[bool, Option(help="Shift and flip the images of fine-tuning.")] = True,
    attack: AttackFile = None,
    test: Annotated[str | None, Option(help="Clean test images, to measure accuracy on.")] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    network: ModelOptions,
    reading: ReadingOptions = TEST_SPLIT,
) -> None:
    """Repair MODEL by Fine-Pruning with clean images.

    Writes the repaired network and, beside it, a report with the pruning curve. The attack and the test images only
    serve to measure; the defense does not use them.

    Example: undoor prune model.safetensors --data photos-test --out repaired.safetensors
    """
    require_extra("matplotlib", "figures", "the pruning curve")
    from undoor.attacks import read_attack
    from undoor.cli import terminal
    from undoor.defenses.post_training.fine_pruning import FinePruning
    from undoor.defenses.post_training.pruned import refuse_network
    from undoor.networks.weights import Architecture, read_architecture, require_same_classes
    from undoor.report.pruned import write_pruned

    given = {"tolerance": tolerance, "epochs": epochs, "learning_rate": learning_rate}
    defense = FinePruning(
        layer,
        ranking,  # type: ignore[arg-type] # FinePruning checks it
        augment=augment,
        seed=seed,
        **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]
    )
    planned = None if attack is None else read_attack(attack)
    if planned is not None and test is None:
        raise UndoorError("--attack is measured on test images; add --test DATA")
    if test == data and reading.split == "test":
        raise UndoorError(
            "--data and --test are the same images; measure the network on images it was not repaired with"
        )
    refuse_network(out, overwrite)
    classifier, class_names = network.load(model, layer="")  # no features are needed
    clean = reading.read(data)
    require_same_classes(class_names, clean.class_names, model)
    test_set = None if test is None else replace(reading, split="test").read(test)
    with terminal.stages("channels") as bar:
        on_step = bar.training("fine-tuning")
        result = defense(classifier, clean, on_batch=bar.counting("pruning"), on_step=on_step)
        if test_set is not None:
            bar.begin("measuring")
            result = _measured(result, test_set, planned, bar.counting("measuring"))
    architecture = read_architecture(model) if model.suffix == ".safetensors" else None
    if architecture is None:
        architecture = Architecture(str(network.network), clean.images.shape[1:], clean.class_names, {})
    write_pruned(result, out, architecture, overwrite=overwrite)
    page = out.with_suffix(".html")
    terminal.print_result({**result.summary(), "network": out, "report": page})
    terminal.print_pruned(result)
    if result.doubt:
        warnings.warn(result.doubt, UndoorNotice, stacklevel=1)
    terminal.print_line(f"network: {out}\nreport: {page}")


def _measured(
    result: "Pruned", test: "Dataset", attack: "Attack | None", on_batch: Callable[[int, int], None]
) -> "Pruned":
    """Return the result with clean accuracy and attack success rate on test images."""
    from undoor.attacks import triggered
    from undoor.experiments.measure import measure
    from undoor.findings.metrics import attack_success_rate

    networks = {"before": result.before, "pruned": result.pruned, "tuned": result.tuned}
    measured = {name: measure(network, test, attack) for name, network in networks.items()}
    if attack is None:
        return result.against(measured)
    images = triggered(test, attack).images
    step = -(-len(images) // CURVE_IMAGES)
    target = test.class_names.index(attack.target)
    decisions_along_curve = result.decisions_along(images[::step], on_batch)
    return result.against(measured, [attack_success_rate(decisions, target) for decisions in decisions_along_curve])

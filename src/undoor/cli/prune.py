"""The command ``undoor prune``."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from undoor.cli.options import (
    ImageColumn,
    ImageSize,
    LabelColumn,
    Mean,
    Network,
    Overwrite,
    Seed,
    SkipBroken,
    Split,
    Std,
    numbers,
    read_data,
)
from undoor.errors import UndoorError, UndoorNotice

if TYPE_CHECKING:
    from undoor.attacks import Attack
    from undoor.data.dataset import Dataset
    from undoor.defenses.post_training import Pruned

ALONG = 1000
"""Triggered images, at most, whose decisions are measured along the whole curve."""


def prune(
    model: Annotated[Path, typer.Argument(help="the network's weights", metavar="MODEL")],
    data: Annotated[str, typer.Option(help="some clean images of every class, which the network was not trained on")],
    out: Annotated[Path, typer.Option(help="the file for the repaired network, .safetensors")],
    network: Network = None,
    layer: Annotated[
        str | None, typer.Option(help="the convolution whose channels are pruned; by default the last that runs")
    ] = None,
    mean: Mean = None,
    std: Std = None,
    tolerance: Annotated[
        float | None, typer.Option(help="how far clean accuracy may fall by pruning, as a share; by default 0.04")
    ] = None,
    ranking: Annotated[str, typer.Option(help="dormant, or random, the control")] = "dormant",
    epochs: Annotated[int | None, typer.Option(min=1, help="of fine-tuning; by default 20")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="of fine-tuning, the highest; by default 0.05")] = None,
    augment: Annotated[bool, typer.Option(help="shift and flip the images of fine-tuning")] = True,
    attack: Annotated[
        Path | None,
        typer.Option(help="attack.json of undoor poison: measure its success before and after; needs --test"),
    ] = None,
    test: Annotated[str | None, typer.Option(help="clean test DATA: measure accuracy before and after")] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    split: Split = "test",
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    image_size: ImageSize = None,
    skip_broken: SkipBroken = False,
) -> None:
    """Repair MODEL by Fine-Pruning on clean images; write the repaired network and the pruning curve.

    The attack and the test data serve to measure: the defence does not see them.

    Example: undoor prune model.safetensors --data photos-test --out repaired.safetensors
    """
    from undoor.attacks import read_attack
    from undoor.cli import terminal
    from undoor.defenses.post_training.fine_pruning import FinePruning
    from undoor.defenses.post_training.pruned import refuse_network
    from undoor.networks.classifier import Classifier
    from undoor.networks.weights import Architecture, load_model, read_architecture, require_same_classes
    from undoor.report import write_pruned

    given = {"tolerance": tolerance, "epochs": epochs, "learning_rate": learning_rate}
    defense = FinePruning(
        layer,
        ranking,  # type: ignore[arg-type] # which it checks
        augment=augment,
        seed=seed,
        **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]
    )
    planned = None if attack is None else read_attack(attack)
    if planned is not None and test is None:
        raise UndoorError("--attack is measured on test images; add --test DATA")
    if test == data and split == "test":
        raise UndoorError("--data and --test are the same images; repaired with some, a network is measured on others")
    refuse_network(out, overwrite)
    loaded, names = load_model(model, network)
    classifier = Classifier(loaded, layer="", mean=numbers(mean, "--mean"), std=numbers(std, "--std"))
    columns = {"image_column": image_column, "label_column": label_column, "image_size": image_size}
    clean = read_data(data, split=split, skip_broken=skip_broken, **columns)
    require_same_classes(names, clean.class_names, model)
    test_set = None if test is None else read_data(test, split="test", skip_broken=skip_broken, **columns)
    with terminal.stages("channels") as bar:
        tuning = bar.training("fine-tuning")
        result = defense(classifier, clean, on_batch=bar.counting("pruning"), on_step=tuning)
        if test_set is not None:
            bar.begin("measuring")
            result = _measured(result, test_set, planned, bar.counting("measuring"))
    described = read_architecture(model) if model.suffix == ".safetensors" else None
    if described is None:
        described = Architecture(str(network), clean.images.shape[1:], clean.class_names, {})
    write_pruned(result, out, described, overwrite=overwrite)
    page = out.with_suffix(".html")
    terminal.print_result({**result.summary(), "network": out, "report": page})
    terminal.print_pruned(result)
    if result.doubt:
        warnings.warn(result.doubt, UndoorNotice, stacklevel=1)
    terminal.out.print(f"network: {out}\nreport: {page}", soft_wrap=True, markup=False)


def _measured(
    result: "Pruned", test: "Dataset", attack: "Attack | None", on_batch: Callable[[int, int], None]
) -> "Pruned":
    """Return the result with accuracy and attack success on test images, which the defence has not seen."""
    from undoor.attacks import triggered
    from undoor.experiments.measure import measure
    from undoor.findings.metrics import attack_success_rate

    networks = {"before": result.before, "pruned": result.pruned, "tuned": result.tuned}
    measured = {name: measure(network, test, attack) for name, network in networks.items()}
    if attack is None:
        return result.against(measured)
    images = triggered(test, attack).images
    some = images[:: -(-len(images) // ALONG)]
    target = test.class_names.index(attack.target)
    along = result.decisions_along(some, on_batch)
    return result.against(measured, [attack_success_rate(decisions, target) for decisions in along])

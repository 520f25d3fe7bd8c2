"""The command ``undoor train``."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from typer import Option

from undoor.cli.options import AttackFile, Data, Network, Overwrite, ReadingOptions, TrainingOptions
from undoor.errors import UndoorError


def train(
    data: Data,
    *,
    out: Annotated[Path, Option(help="The .safetensors file for the network.")],
    test: Annotated[str | None, Option(help="Clean test images, to measure accuracy on.")] = None,
    attack: AttackFile = None,
    overwrite: Overwrite = False,
    network: Network = None,
    training: TrainingOptions,
    reading: ReadingOptions,
) -> None:
    """Train a network on DATA.

    An interrupted training continues when the same command is given again.

    Example: undoor train photos --test photos-test --out model.safetensors
    """
    from undoor.attacks import read_attack
    from undoor.cli import terminal
    from undoor.experiments.measure import measure
    from undoor.networks.victims import fit_victim

    training.recipe()  # raises now if the preset is unknown, not after the images are read
    planned = None if attack is None else read_attack(attack)
    if planned is not None and test is None:
        raise UndoorError("--attack is measured on test images; add --test DATA")
    dataset = reading.read(data)
    test_set = None if test is None else replace(reading, split="test").read(test)
    with terminal.stages("train") as bar:
        model = fit_victim(
            dataset, training.recipe(len(dataset)), out, network, overwrite=overwrite, on_step=bar.training()
        )
    terminal.print_line(f"network: {out}")
    success = None
    if test_set is not None:
        with terminal.counting_bar("measure") as on_image:
            success = measure(model, test_set, planned, on_image)
    terminal.print_result({"network": out, **(success or {})})
    if success is not None:
        terminal.print_success(success)

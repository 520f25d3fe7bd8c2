"""The command ``undoor inspect``."""

from pathlib import Path
from typing import Annotated

import typer

from undoor.cli.options import (
    DATA,
    ExitZero,
    ImageColumn,
    ImageSize,
    LabelColumn,
    Layer,
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


def inspect(
    model: Annotated[Path, typer.Argument(help="the network's weights", metavar="MODEL")],
    data: Annotated[str, typer.Option(help=f"clean images: {DATA}")],
    out: Annotated[Path, typer.Option(help="the folder for the inspection")],
    network: Network = None,
    layer: Layer = None,
    mean: Mean = None,
    std: Std = None,
    images: Annotated[int, typer.Option(min=1, help="clean images a class")] = 50,
    share: Annotated[float, typer.Option(help="of them that a perturbation must send to the target")] = 0.9,
    rule: Annotated[
        str, typer.Option(help="whose p-value decides: B, each target against all others, or A, all pairs together")
    ] = "B",
    seed: Seed = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="images a forward pass")] = 128,
    overwrite: Overwrite = False,
    exit_zero: ExitZero = False,
    split: Split = "test",
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    image_size: ImageSize = None,
    skip_broken: SkipBroken = False,
) -> None:
    """Tell whether MODEL has a backdoor, from clean images alone. Ends with 1 if one is detected, 0 if not.

    Example: undoor inspect model.safetensors --data photos-test --out inspection
    """
    from undoor.cli import terminal
    from undoor.defenses.post_training import ReverseEngineering
    from undoor.findings.findings import refuse_findings
    from undoor.networks.classifier import Classifier
    from undoor.networks.weights import load_model, require_same_classes
    from undoor.report import write_inspection

    method = ReverseEngineering(
        images=images, share=share, seed=seed, batch_size=batch_size,
        rule=rule,  # type: ignore[arg-type] # which it checks
    )  # fmt: skip
    refuse_findings(out, overwrite)
    given, names = load_model(model, network)
    classifier = Classifier(given, layer=layer, mean=numbers(mean, "--mean"), std=numbers(std, "--std"))
    dataset = read_data(
        data, split=split, image_column=image_column, label_column=label_column,
        image_size=image_size, skip_broken=skip_broken,
    )  # fmt: skip
    require_same_classes(names, dataset.class_names, model)
    with terminal.counting_bar("class pairs") as on_pair:
        inspection = method(classifier, dataset, on_pair=on_pair)
    write_inspection(inspection, out, overwrite=overwrite)
    terminal.print_result({**inspection.summary(), "out": out, "report": out / "report.html"})
    terminal.print_inspection(inspection)
    terminal.out.print(f"report: {out / 'report.html'}", soft_wrap=True, markup=False)
    if inspection.verdict == "backdoored" and not exit_zero:
        raise typer.Exit(1)

"""The command ``undoor inspect``."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from undoor.cli.options import (
    FORMATS,
    TEST_SPLIT,
    BatchSize,
    ExitZero,
    Layer,
    Model,
    ModelOptions,
    Overwrite,
    ReadingOptions,
    Seed,
)


def inspect(
    model: Model,
    *,
    data: Annotated[str, Option(help=f"Clean images: {FORMATS}.")],
    out: Annotated[Path, Option(help="Folder for the inspection.")],
    images: Annotated[int, Option(min=1, metavar="N", help="Number of clean images per class.")] = 50,
    share: Annotated[float, Option(help="Share of them that a perturbation must move to the target class.")] = 0.9,
    rule: Annotated[
        str, Option(help="Which p-value decides: B (each target class against the others) or A (all class pairs).")
    ] = "B",
    seed: Seed = 0,
    batch_size: BatchSize = 128,
    overwrite: Overwrite = False,
    exit_zero: ExitZero = False,
    network: ModelOptions,
    layer: Layer = None,
    reading: ReadingOptions = TEST_SPLIT,
) -> None:
    """Detect a backdoor in MODEL, with clean images alone.

    Exits with 1 if one is detected and 0 if not.

    Example: undoor inspect model.safetensors --data photos-test --out inspection
    """
    from undoor.cli import terminal
    from undoor.defenses.post_training import ReverseEngineering
    from undoor.findings.findings import refuse_findings
    from undoor.networks.weights import require_same_classes
    from undoor.report.inspection import write_inspection

    method = ReverseEngineering(
        images=images, share=share, seed=seed, batch_size=batch_size,
        rule=rule,  # type: ignore[arg-type] # ReverseEngineering checks it
    )  # fmt: skip
    refuse_findings(out, overwrite)
    classifier, class_names = network.load(model, layer)
    dataset = reading.read(data)
    require_same_classes(class_names, dataset.class_names, model)
    with terminal.counting_bar("class pairs") as on_pair:
        inspection = method(classifier, dataset, on_pair=on_pair)
    write_inspection(inspection, out, overwrite=overwrite)
    terminal.print_result({**inspection.summary(), "out": out, "report": out / "report.html"})
    terminal.print_inspection(inspection)
    terminal.print_line(f"report: {out / 'report.html'}")
    if inspection.verdict == "backdoored" and not exit_zero:
        raise typer.Exit(1)

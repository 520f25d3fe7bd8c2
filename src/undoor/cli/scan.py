"""The commands ``undoor scan`` and ``undoor clean``."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from undoor.cli.options import (
    Data,
    EngineKind,
    Epochs,
    ExitZero,
    Gpus,
    ImageColumn,
    ImageSize,
    LabelColumn,
    Layer,
    LearningRate,
    Mean,
    Network,
    Out,
    Overwrite,
    Preset,
    Seed,
    SkipBroken,
    Split,
    Std,
    Workers,
    dimensions_of,
    numbers,
    read_data,
    refuse_existing,
)
from undoor.errors import UndoorError


def scan(
    data: Data,
    out: Annotated[Path, typer.Option(help="the folder for the findings")],
    model: Annotated[
        Path | None,
        typer.Option(help="the network's weights; by default one is trained on DATA and kept in --out"),
    ] = None,
    network: Network = None,
    layer: Layer = None,
    mean: Mean = None,
    std: Std = None,
    image_filter: Annotated[
        str, typer.Option("--filter", help="average[:SIZE[:zero]], median, gaussian, noise or quantise")
    ] = "average:2",
    decision: Annotated[
        str,
        typer.Option(help="changes that count: confident ones (threshold 0.15), or all, plain, as in the paper (0.5)"),
    ] = "confident",
    threshold: Annotated[
        float | None, typer.Option(help="impurity above which a cluster is flagged; by default the decision's")
    ] = None,
    unconditioned: Annotated[
        bool,
        typer.Option("--unconditioned", help="count all images in p, not only those decided as labelled"),
    ] = False,
    skip_single: Annotated[bool, typer.Option("--skip-single", help="skip classes with one cluster")] = False,
    dimensions: Annotated[
        str, typer.Option(help="to which features are reduced: auto, few, a number, or all, which leaves them alone")
    ] = "auto",
    one_look: Annotated[
        bool, typer.Option("--one-look", help="no second look, in few directions, at classes where nothing is flagged")
    ] = False,
    preset: Preset = "fast",
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    seed: Seed = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="images a forward pass")] = 128,
    sarif: Annotated[
        Path | None, typer.Option(help="also write the findings to this file, for code-scanning pages")
    ] = None,
    overwrite: Overwrite = False,
    exit_zero: ExitZero = False,
    split: Split = "train",
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    image_size: ImageSize = None,
    skip_broken: SkipBroken = False,
    engine: EngineKind = "local",
    workers: Workers = None,
    gpus: Gpus = 0.0,
) -> None:
    """Scan DATA for backdoor poisoning. Ends with 1 if something is flagged, 0 if nothing is.

    A scan that was interrupted goes on where it was when the command is given again.

    Example: undoor scan photos --out findings --sarif findings.sarif
    """
    from undoor.cli import terminal
    from undoor.defenses.training_set import ClusterImpurity
    from undoor.engine import Engine
    from undoor.evidence.shards import discard, kept_until_done
    from undoor.filters import parse_filter
    from undoor.findings.findings import refuse_findings
    from undoor.integrations import sarif_log
    from undoor.mixtures.sweep import MixtureSettings
    from undoor.networks.classifier import Classifier
    from undoor.networks.recipes import long_enough, recipe
    from undoor.networks.victims import fit_victim
    from undoor.networks.weights import load_model, require_same_classes
    from undoor.report import write_findings
    from undoor.scanning import scan as run
    from undoor.storage.atomic import write_text

    h = parse_filter(image_filter)
    chosen_engine = Engine(engine, workers, gpus)  # type: ignore[arg-type] # which it checks
    defense = ClusterImpurity(
        mixture=MixtureSettings(dimensions=dimensions_of(dimensions)), second_look=not one_look,
        decision=decision,  # type: ignore[arg-type] # which it checks
        threshold=threshold, conditioned=not unconditioned, skip_single=skip_single, seed=seed, workers=chosen_engine,
    )  # fmt: skip
    options: dict[str, Any] = {
        "layer": layer,
        "mean": numbers(mean, "--mean"),
        "std": numbers(std, "--std"),
    }
    chosen = recipe(preset, epochs=epochs, learning_rate=learning_rate, seed=seed)
    if not overwrite and (out / "summary.json").exists():
        discard(out / "evidence.part")  # of a run that was killed when all was written
    refuse_findings(out, overwrite)
    if sarif is not None and sarif.exists() and not overwrite:
        raise UndoorError(f"{sarif} exists already; choose another --sarif or add --overwrite")
    given = None if model is None else load_model(model, network)
    if given is not None:
        classifier = Classifier(given[0], **options)
    dataset = read_data(
        data, split=split, image_column=image_column, label_column=label_column,
        image_size=image_size, skip_broken=skip_broken,
    )  # fmt: skip
    if given is None:
        chosen = chosen if epochs is not None else long_enough(chosen, len(dataset))
        with terminal.stages("train") as bar:
            victim = fit_victim(
                dataset, chosen, out / "victim.safetensors", network, overwrite=overwrite, on_step=bar.training()
            )
        classifier = Classifier(victim, **options)
    else:
        require_same_classes(given[1], dataset.class_names, model)
    with kept_until_done(out / "evidence.part") as folder, terminal.stages("evidence") as bar:
        findings = run(
            classifier, dataset, replace(defense, on_mixture=bar.counting("mixtures")), image_filter=h,
            batch_size=batch_size, folder=folder, engine=chosen_engine, on_batch=bar.counting("evidence"),
        )  # fmt: skip
        bar.begin("report")
        write_findings(findings, dataset, h, out, overwrite=overwrite)
    if sarif is not None:
        write_text(sarif, json.dumps(sarif_log(findings, data), indent=2, ensure_ascii=False) + "\n")
    terminal.print_result({**findings.summary(), "report": out / "report.html"})
    terminal.print_findings(findings)
    terminal.out.print(f"report: {out / 'report.html'}", soft_wrap=True, markup=False)
    if findings.verdict == "poisoned" and not exit_zero:
        raise typer.Exit(1)


def clean(
    data: Data,
    findings: Annotated[Path, typer.Option(help="the folder that undoor scan wrote for DATA")],
    out: Out,
    drop: Annotated[
        Path | None, typer.Option(help="a file with one id a line: leave these out, instead of what was flagged")
    ] = None,
    split: Split = "train",
) -> None:
    """Write the part of DATA that was not flagged; DATA itself stays as it is.

    With --drop it is you who decides: the report saves a selection as such a file.

    Example: undoor clean photos --findings findings --out photos-clean
    """
    from undoor.cli.terminal import counting_bar, print_result
    from undoor.cli.terminal import out as console
    from undoor.data.readers.subset import write_subset
    from undoor.findings.reading import read_ids, read_list

    refuse_existing(out)
    scanned, kept = read_ids(findings)
    if drop is not None:
        dropped = read_list(drop, scanned)
        kept = [name for name in scanned if name not in dropped]
    with counting_bar("write") as on_image:
        write_subset(data, scanned, kept, out, split, on_image)
    print_result({"out": out, "scanned": len(scanned), "kept": len(kept)})
    console.print(f"kept {len(kept)} of {len(scanned)} images\nwritten to {out}", soft_wrap=True, markup=False)
